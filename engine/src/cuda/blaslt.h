// Matrices times many tokens by cuBLASLt, which is loaded at run time where it is installed: the engine does without it, more slowly.
#pragma once

#include <cuda_runtime_api.h>

#include <compare>
#include <map>
#include <memory>
#include <span>

#include "kernels.h"
#include "memory.h"

namespace millrace {

class BlasLt {
 public:
  // Null where the library is not to be had.
  static std::unique_ptr<BlasLt> open();
  ~BlasLt();
  BlasLt(const BlasLt&) = delete;
  BlasLt& operator=(const BlasLt&) = delete;

  enum class Result : uint8_t { f32, bf16 };
  // What a matrix is multiplied by, [tokens][columns]: bfloat16, or with a matrix of E4M3 that too, and a scale for each token.
  struct Input {
    const void* values = nullptr;
    const float* scales = nullptr;
  };
  // y[t][r] = w . x, plus what lies there where `adds`. y is [tokens][stride] of `result`. The same shapes give the same bits, as long as they are not tuned.
  void multiply(cudaStream_t stream, const DeviceMatrix& w, const Input& x, int tokens, Result result, void* y, int64_t stride, bool adds);
  // Of all the ways that the library has for such products, takes the fastest from now on, by trying them: y comes to hold anything. `alike` are
  // matrices of one shape, as many as L2 cannot hold. False: that was done before.
  bool tune(cudaStream_t stream, std::span<const DeviceMatrix> alike, const Input& x, int tokens, Result result, void* y, int64_t stride, bool adds);

 private:
  struct Library;
  struct Plan;
  struct Shape {
    DeviceMatrix::Type type;
    int rows, columns, tokens;
    Result result;
    int64_t stride;
    bool adds;
    auto operator<=>(const Shape&) const = default;
  };

  explicit BlasLt(std::unique_ptr<Library> library);
  Plan& plan_of(const Shape& shape);
  int run(cudaStream_t stream, const Plan& plan, size_t way, const DeviceMatrix& w, const Input& x, void* y, bool adds);

  std::unique_ptr<Library> library_;
  void* handle_ = nullptr;
  DeviceArray<uint8_t> workspace_;
  std::map<Shape, std::unique_ptr<Plan>> plans_;
};

}  // namespace millrace
