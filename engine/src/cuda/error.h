// What a CUDA call says went wrong, thrown: inside the backend a failed call fails the step, as a failed allocation does on a CPU.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace millrace {

class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t result, const char* what) {
  if (result != cudaSuccess) throw CudaError(std::string(what) + ": " + cudaGetErrorString(result));
}

}  // namespace millrace
