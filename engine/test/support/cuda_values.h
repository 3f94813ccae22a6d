// Random values for kernels, and how near their results must be.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "random.h"
#include "test.h"

namespace millrace::test {

// A result in bfloat16 may be off by its rounding, 2^-9 of a value.
constexpr double bf16_error = 0x1p-8, f32_error = 1e-4;

inline float bf16(float value) { return __bfloat162float(__float2bfloat16_rn(value)); }

inline std::vector<float> normals(Random& random, size_t count, float scale = 1) {
  std::vector<float> values(count);
  for (float& value : values) value = scale * static_cast<float>(random.normal());
  return values;
}

// |value - right| within `error` of the larger of |right| and 0.05.
inline void check_near(const std::vector<float>& values, const std::vector<double>& right, double error, const char* what) {
  REQUIRE(values.size() == right.size());
  for (size_t i = 0; i < values.size(); i++) {
    const double off = std::fabs(values[i] - right[i]);
    CHECK(off <= error * std::max(std::fabs(right[i]), 0.05), what, " ", i, ": ", values[i], ", not ", right[i]);
  }
}

}  // namespace millrace::test
