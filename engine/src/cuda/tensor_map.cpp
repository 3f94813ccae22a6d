#include "tensor_map.h"

#include <string>

#include "error.h"

namespace millrace {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found), "looking for tensor maps");
  if (found != cudaDriverEntryPointSuccess) throw CudaError("the driver has no tensor maps: it is older than CUDA 12; install a newer one");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap map_of(const void* values, const MapShape& shape) {
  static const Encode encode = find_encode();
  constexpr uint32_t steps[map_dimensions_max] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode(&map, shape.type, shape.rank, const_cast<void*>(values), shape.dimensions, shape.strides, shape.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 shape.swizzle, shape.promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    const std::string what = std::to_string(shape.rank) + " dimensions, the last one of " + std::to_string(shape.dimensions[shape.rank - 1]);
    throw CudaError("a tensor map of " + what + ", was refused (CUresult " + std::to_string(result) + "): are its values aligned to 16 bytes?");
  }
  return map;
}

}  // namespace millrace
