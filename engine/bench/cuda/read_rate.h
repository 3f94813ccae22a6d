// What benches of the GPU measure themselves against: how fast its memory can be read by a kernel that does nothing else.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace millrace::bench {

// Random bits that are finite numbers of moderate size, read as bfloat16 or as E4M3.
void fill_random(cudaStream_t stream, void* memory, size_t bytes);

// Reads `bytes` (a multiple of 64 KiB) once and leaves in `sink` what no compiler can do without.
void read_all(cudaStream_t stream, const void* memory, size_t bytes, uint32_t* sink);

}  // namespace millrace::bench
