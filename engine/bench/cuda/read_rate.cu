// Grid of read_all: 4 blocks a multiprocessor, all that fit, each a stride of 64 KiB; a thread has 8 loads of 16 bytes in flight.
#include "read_rate.h"

#include "cuda/error.h"

namespace millrace::bench {
namespace {

constexpr int threads = 512, loads = 8;

__global__ void __launch_bounds__(threads) read_kernel(const uint4* memory, size_t chunks, uint32_t* sink) {
  uint32_t all = 0;
  for (size_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const uint4* from = memory + chunk * threads * loads + threadIdx.x;
    uint4 value[loads];
#pragma unroll
    for (int i = 0; i < loads; i++) value[i] = __ldcs(from + i * threads);
#pragma unroll
    for (int i = 0; i < loads; i++) all ^= value[i].x ^ value[i].y ^ value[i].z ^ value[i].w;
  }
  if (all == 0x9e3779b9) *sink = all;
}

__global__ void __launch_bounds__(threads) fill_kernel(uint32_t* memory, size_t words) {
  const size_t stride = static_cast<size_t>(gridDim.x) * threads;
  for (size_t i = static_cast<size_t>(blockIdx.x) * threads + threadIdx.x; i < words; i += stride) {
    uint32_t bits = static_cast<uint32_t>(i * 0x9e3779b97f4a7c15u >> 32);
    bits = (bits ^ bits >> 15) * 0x85ebca6b;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35;
    bits = ((bits ^ bits >> 16) & 0x81ff81ff) | 0x3c003c00;  // 2^-7 to 2^-3 of either sign in bfloat16
    for (uint32_t byte = 0xff; byte != 0; byte <<= 16)
      if ((bits & byte & 0x7f7f7f7f) == (byte & 0x7f7f7f7f)) bits ^= byte & 0x01010101;  // no NaN in E4M3
    memory[i] = bits;
  }
}

int blocks() {
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "asking which GPU is used");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
  return 4 * multiprocessors;
}

}  // namespace

void fill_random(cudaStream_t stream, void* memory, size_t bytes) {
  fill_kernel<<<blocks(), threads, 0, stream>>>(static_cast<uint32_t*>(memory), bytes / sizeof(uint32_t));
  check(cudaGetLastError(), "filling memory");
}

void read_all(cudaStream_t stream, const void* memory, size_t bytes, uint32_t* sink) {
  read_kernel<<<blocks(), threads, 0, stream>>>(static_cast<const uint4*>(memory), bytes / (sizeof(uint4) * threads * loads), sink);
  check(cudaGetLastError(), "reading memory");
}

}  // namespace millrace::bench
