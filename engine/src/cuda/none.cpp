// A build without CUDA: says so, and has nothing else.
#include "cuda.h"

namespace millrace {

Result<CudaMachine> inspect_cuda() { return Status::error("this build has no CUDA kernels; npm run build:cuda builds them, with CUDA 13's nvcc"); }

// None of these is called once that was said.
Result<std::unique_ptr<KvPages>> reserve_cuda_pages(int64_t, int64_t, int) { return Status::error("this build has no CUDA kernels"); }
uint64_t cuda_backend_bytes(const Model&, const CudaLimits&) { return 0; }
std::unique_ptr<Backend> make_cuda_backend(const ModelFile&, const Model&, const KvSlots&, Team&, const CudaLimits&, std::vector<std::string>&, MatrixWork&) { return nullptr; }

}  // namespace millrace
