// What tells Hopper's copy engine where a tensor's values lie, and which of them one copy takes; see tile_copy.cuh.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace millrace {

constexpr int map_dimensions_max = 5;

// Dimensions come in the order that a copy leaves them in; their strides may be of any order. The first one's values lie together.
struct MapShape {
  CUtensorMapDataType type;
  CUtensorMapL2promotion promotion;
  uint32_t rank;
  uint64_t dimensions[map_dimensions_max];   // what lies beyond comes as zeros
  uint64_t strides[map_dimensions_max - 1];  // bytes, multiples of 16: of the second dimension and on
  uint32_t box[map_dimensions_max];          // of one copy
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
};

// Throws CudaError where the driver refuses it.
CUtensorMap map_of(const void* values, const MapShape& shape);

}  // namespace millrace
