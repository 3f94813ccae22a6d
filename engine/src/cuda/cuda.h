// The way into the CUDA backend, the same for builds that have it and builds that do not (none.cpp): nothing outside this folder includes
// a header of CUDA's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../base/team.h"
#include "../format/model_file.h"
#include "../kv/pages.h"
#include "../kv/slots.h"
#include "../model/backend.h"
#include "../model/model.h"
#include "engine.h"
#include "status.h"

namespace millrace {

struct CudaMachine {
  std::string name;                // e.g. "NVIDIA H200"
  int multiprocessors = 0;
  uint64_t memory_free_bytes = 0;  // of the device
};

// The GPU that the backend would run on, which the calling thread then uses; an error that says what is missing: a build with kernels, a
// driver, a Hopper GPU.
Result<CudaMachine> inspect_cuda();

// KV pages in the device's memory, whole granules of cuda_granule_bytes, of which at most pages_max are made. See kv/pages.h.
constexpr int64_t cuda_granule_bytes = 2 << 20;
Result<std::unique_ptr<KvPages>> reserve_cuda_pages(int64_t places, int64_t page_bytes, int pages_max);

struct CudaLimits {
  int tokens_max = 0;          // of a step
  int slots = 0;               // all that KV memory has
  int samples_max = 0;         // of a step whose tokens are sampled
  int context_tokens = 0;
  bool as_fp8 = false;            // weights in E4M3, with a scale for each row
  bool is_deterministic = false;  // the same bits in any company: one kernel for matrices, one for attention
};

// What the backend's weights and buffers will take of the device's memory.
uint64_t cuda_backend_bytes(const Model& model, const CudaLimits& limits);

// Copies the weights of `file`, which `model` was read from, to the device, the team reading them. The slots must outlive the backend.
// Throws where the device has no room. `log` receives what was chosen; `work` what its matrices ask of a step.
std::unique_ptr<Backend> make_cuda_backend(const ModelFile& file, const Model& model, const KvSlots& slots, Team& team, const CudaLimits& limits,
                                           std::vector<std::string>& log, MatrixWork& work);

}  // namespace millrace
