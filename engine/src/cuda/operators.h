// The operators of model.h as the CUDA backend runs them: matrices in bfloat16 on the device, vectors in float32.
#pragma once

#include <deque>
#include <map>
#include <variant>
#include <vector>

#include "../base/team.h"
#include "../model/model.h"
#include "engine.h"
#include "memory.h"
#include "vectors.h"

namespace millrace {

struct DeviceLinear {
  DeviceMatrix weight;
  const float* bias = nullptr;  // [rows], or none
};

// `next` is the norm that reads x next, where it can be shared between kernels (see NormOutput), or none; `is_left`: it was left by who wrote x.
struct CudaEmbed {
  DeviceMatrix weight;  // [vocabulary][hidden]
  float scale;
  DeviceNorm next = {};
};
struct CudaQkv {
  int layer;
  DeviceNorm norm;
  DeviceLinear linear;  // q rows, k rows, v rows
  DeviceNorm q_norm, k_norm;
  int rope;
  float query_scale;
  bool is_left = false;
};
struct CudaAttend {
  int layer;
  AttendShape shape;
};
struct CudaProject {
  DeviceLinear linear;
  DeviceNorm post_norm;
  DeviceNorm next = {};
};
struct CudaGateUp {
  DeviceNorm norm;
  DeviceLinear linear;  // gate rows, then up rows; or up rows only
  bool is_gated;
  int ffn;
  Activation activation;
  bool is_left = false;
};
struct CudaDown {
  DeviceLinear linear;
  DeviceNorm post_norm;
  DeviceNorm next = {};
};
struct CudaExperts {
  DeviceNorm norm;
  DeviceLinear router;
  DeviceLinear wide;  // of all experts one after another: each gate rows, then up rows; or up rows only
  DeviceLinear down;  // likewise
  bool is_gated;
  int experts, used, ffn;
  bool is_normalized;
  Activation activation;
};
struct CudaLogits {
  DeviceNorm norm;
  DeviceLinear linear;
  float soft_cap;
};
using CudaOperator = std::variant<CudaEmbed, CudaQkv, CudaAttend, CudaProject, CudaGateUp, CudaDown, CudaExperts, CudaLogits>;

// The weights on the device, which it frees. A team reads them from the file, rounded to bfloat16 where they are of another type, into pinned
// memory, from where they are copied while the next ones are read.
class CudaWeights {
 public:
  // as_fp8: matrices become E4M3 with a scale for each row, or stay that, but for the embedding, the LM head and what routes or is routed to.
  CudaWeights(const ModelFile& file, const ModelConfig& config, Team& team, bool as_fp8);
  ~CudaWeights();
  CudaWeights(const CudaWeights&) = delete;
  CudaWeights& operator=(const CudaWeights&) = delete;

  CudaOperator place(const Operator& op);
  const float* vector(const std::vector<float>& values);
  // All copies are done; the pinned memory is given back.
  void finish();

  uint64_t bytes() const { return bytes_; }
  // Of matrices, as the file has them.
  uint64_t read_bytes() const { return read_bytes_; }
  // What the matrices ask of a step; see add_work of the CPU's.
  const MatrixWork& work() const { return work_; }

 private:
  struct Staged {
    PinnedArray<uint8_t> memory;
    DeviceArray<uint8_t> unquantized;  // of what becomes E4M3
    cudaEvent_t copied = nullptr;
  };
  static constexpr int staged_count = 4;

  DeviceNorm norm(const Norm& norm);
  const float* vector(const FileTensor* tensor);
  DeviceMatrix matrix(const std::vector<const FileTensor*>& tensors, DeviceMatrix::Type type = DeviceMatrix::Type::bf16);
  DeviceLinear linear(const std::vector<Linear>& parts, DeviceMatrix::Type type = DeviceMatrix::Type::bf16);
  DeviceMatrix::Type type() const { return as_fp8_ ? DeviceMatrix::Type::fp8 : DeviceMatrix::Type::bf16; }
  Staged& next_staged();
  void copy_e4m3(const std::vector<const FileTensor*>& tensors, int columns, uint8_t* values, float* scales);
  void copy_rows(const std::vector<const FileTensor*>& tensors, int64_t first, int64_t count, int columns, uint8_t* to);
  void count(const DeviceMatrix& weight, double part);

  const ModelFile& file_;
  const ModelConfig config_;
  Team& team_;
  const bool as_fp8_;
  std::deque<DeviceArray<uint8_t>> arrays_;
  std::map<std::vector<const FileTensor*>, DeviceMatrix> matrices_;  // a tied embedding is stored once
  Staged staged_[staged_count];
  int next_ = 0;
  cudaStream_t stream_ = nullptr;
  uint64_t bytes_ = 0, read_bytes_ = 0;
  MatrixWork work_;
};

}  // namespace millrace
