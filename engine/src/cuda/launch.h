// How kernels follow one another. Each is launched so that it may begin while the one in front of it still runs: what it does before
// wait_for_previous() touches constants only (weights, tables), and so hides the start of one kernel behind the end of another. Every
// kernel calls both functions below, the second as early as it can: a kernel is begun once all blocks of the one in front of it have
// called it. (attend_tiles.cu has a reason to call it late, and attend_pieces.cu one to wait late.) Source: programmatic dependent launch, CUDA C++ Programming Guide.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "error.h"

namespace millrace {

#ifdef __CUDACC__
// All that earlier kernels wrote is there.
__device__ inline void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ inline void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#endif

// In clusters of so many blocks. Throws CudaError where the launch is refused.
template <typename... Parameters, typename... Arguments>
void launch_clusters(cudaStream_t stream, int cluster, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute attributes[3] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  // The same division of a multiprocessor's memory for all: to change it, a multiprocessor must first be empty.
  attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  attributes[2].id = cudaLaunchAttributeClusterDimension;
  attributes[2].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[2].val.clusterDim.y = attributes[2].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 3 : 2;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
}
template <typename... Parameters, typename... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...), Arguments&&... arguments) {
  launch_clusters(stream, 1, grid, block, shared_bytes, kernel, std::forward<Arguments>(arguments)...);
}

// Lets a kernel have more shared memory than the 48 KiB that every one may take. Once for each kernel and device is enough.
template <typename... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "raising a kernel's shared memory");
}

}  // namespace millrace
