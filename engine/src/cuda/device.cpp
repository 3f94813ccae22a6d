// Which GPU there is, and the driver's functions. cudart is linked statically and looks for the driver itself when it is first called.
#include <cuda_runtime_api.h>

#include "../base/text.h"
#include "cuda.h"
#include "driver.h"

namespace millrace {
namespace {

template <typename Function>
bool find(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = {};
  // The version whose signatures cuda.h declares.
  if (cudaGetDriverEntryPointByVersion(name, &found, CUDART_VERSION, cudaEnableDefault, &result) != cudaSuccess || found == nullptr) return false;
  function = reinterpret_cast<Function>(found);
  return true;
}

}  // namespace

Result<CudaMachine> inspect_cuda() {
  int count = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&count); result != cudaSuccess || count == 0) {
    (void)cudaGetLastError();  // it would be told again by the next call
    return Status::error(text("no CUDA device: ", result == cudaSuccess ? "the driver has none" : cudaGetErrorString(result)));
  }
  std::string others;
  for (int ordinal = 0; ordinal < count; ordinal++) {
    cudaDeviceProp properties = {};
    if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) continue;
    if (properties.major != 9) {
      others += text(others.empty() ? "" : ", ", properties.name);
      continue;
    }
    size_t free_bytes = 0, total_bytes = 0;
    if (const cudaError_t result = cudaSetDevice(ordinal); result != cudaSuccess) return Status::error(text(properties.name, " cannot be used: ", cudaGetErrorString(result)));
    if (const cudaError_t result = cudaMemGetInfo(&free_bytes, &total_bytes); result != cudaSuccess)
      return Status::error(text(properties.name, " cannot be used: ", cudaGetErrorString(result)));
    return CudaMachine{properties.name, properties.multiProcessorCount, free_bytes};
  }
  return Status::error(text("no Hopper GPU (compute capability 9.0): found ", others));
}

std::mutex& default_stream_mutex() {
  static std::mutex mutex;
  return mutex;
}

Result<Driver> find_driver() {
  Driver driver;
  const bool found = find("cuMemAddressReserve", driver.reserve) && find("cuMemAddressFree", driver.free_addresses) && find("cuMemCreate", driver.create) &&
                     find("cuMemRelease", driver.release) && find("cuMemMap", driver.map) && find("cuMemUnmap", driver.unmap) &&
                     find("cuMemSetAccess", driver.set_access) && find("cuGetErrorName", driver.error_name);
  if (!found) return Status::error("the CUDA driver lacks virtual memory management; install one of CUDA 13 or newer");
  return driver;
}

}  // namespace millrace
