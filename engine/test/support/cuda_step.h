// A step's lists on the device, and values on their way there and back, for tests of kernels alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <bit>
#include <vector>

#include "cuda/cuda.h"
#include "cuda/memory.h"
#include "cuda/step.h"
#include "test.h"

namespace millrace::test {

inline void need_gpu() {
  if (const auto gpu = inspect_cuda(); !gpu.ok()) throw Skipped{gpu.message()};
}

// bfloat16 by its bits.
inline float float_of(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
inline uint16_t bfloat_of(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// E4M3 by its bits.
inline float e4m3_of(uint8_t bits) {
  __nv_fp8_e4m3 value;
  value.__x = bits;
  return static_cast<float>(value);
}

template <typename Value>
DeviceArray<Value> upload(const std::vector<Value>& values) {
  DeviceArray<Value> array(values.size());
  if (!values.empty()) check(cudaMemcpy(array.get(), values.data(), array.bytes(), cudaMemcpyHostToDevice), "writing");
  return array;
}

template <typename Value>
std::vector<Value> download(const DeviceArray<Value>& array) {
  std::vector<Value> values(array.count());
  check(cudaMemcpy(values.data(), array.get(), array.bytes(), cudaMemcpyDeviceToHost), "reading");
  return values;
}

inline std::vector<float> download(const DeviceArray<__nv_bfloat16>& array) {
  std::vector<__nv_bfloat16> stored(array.count());
  check(cudaMemcpy(stored.data(), array.get(), array.bytes(), cudaMemcpyDeviceToHost), "reading");
  std::vector<float> values;
  for (const __nv_bfloat16 value : stored) values.push_back(__bfloat162float(value));
  return values;
}

inline std::vector<float> fp8_values(const DeviceArray<uint8_t>& array) {
  std::vector<float> values;
  for (const uint8_t stored : download(array)) values.push_back(e4m3_of(stored));
  return values;
}

// Tokens of ids 10, 11, ... in slots 0, 1, ..., at the given positions or at 0, then so many of padding.
class CudaStep {
 public:
  CudaStep(int tokens, int padding, const std::vector<int>& positions = {}) : counts_(1), device_tokens_(static_cast<size_t>(tokens + padding)), count_(tokens) {
    for (int t = 0; t < tokens + padding; t++)
      this->tokens.push_back(t < tokens ? StepToken{10 + t, positions.empty() ? 0 : positions[static_cast<size_t>(t)], t, 0} : StepToken{});
    write();
  }

  std::vector<StepToken> tokens;

  void write() {
    const StepCounts counts{.tokens = count_};
    check(cudaMemcpy(counts_.get(), &counts, sizeof(counts), cudaMemcpyHostToDevice), "writing");
    check(cudaMemcpy(device_tokens_.get(), tokens.data(), device_tokens_.bytes(), cudaMemcpyHostToDevice), "writing");
  }
  StepView view() const {
    StepView view;
    view.counts = counts_.get();
    view.tokens = device_tokens_.get();
    view.tokens_max = static_cast<int>(tokens.size());
    return view;
  }

 private:
  DeviceArray<StepCounts> counts_;
  DeviceArray<StepToken> device_tokens_;
  int count_;
};

}  // namespace millrace::test
