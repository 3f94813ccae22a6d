// The operators of model.h as the CUDA backend runs them: matrices in bfloat16, or fewer bits, on the device, vectors in float32.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../base/team.h"
#include "../model/model.h"
#include "engine.h"
#include "loader.h"
#include "memory.h"
#include "vectors.h"

namespace millrace {

struct DeviceLinear {
  DeviceMatrix weight;
  const float* bias = nullptr;  // [rows], or none
};

// What reads an operator's result: the matrix, and the norm in front of it where that can be shared between kernels (see NormOutput), or none.
struct CudaReader {
  const DeviceMatrix* matrix = nullptr;
  DeviceNorm norm = {};
};
// Who writes x and leaves the norm, where our own kernels multiply both its matrix and the reader's.
struct CudaWriter {
  const DeviceMatrix* matrix = nullptr;  // none: nobody leaves it
};
struct CudaEmbed {
  DeviceMatrix weight;  // [vocabulary][hidden]
  float scale;
  CudaReader next = {};
};
struct CudaQkv {
  int layer;
  DeviceNorm norm;
  DeviceLinear linear;  // q rows, k rows, v rows
  DeviceNorm q_norm, k_norm;
  int rope;
  float query_scale;
  CudaWriter left = {};
};
struct CudaAttend {
  int layer;
  AttendShape shape;
  CudaReader next = {};
};
struct CudaProject {
  DeviceLinear linear;
  DeviceNorm post_norm;
  CudaReader next = {};
};
struct CudaGateUp {
  DeviceNorm norm;
  DeviceLinear linear;  // gate rows, then up rows; or up rows only
  bool is_gated;
  int ffn;
  Activation activation;
  CudaWriter left = {};
  CudaReader next = {};
};
struct CudaDown {
  DeviceLinear linear;
  DeviceNorm post_norm;
  CudaReader next = {};
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

// The matrices whose rows one after another are a layer's, where the operator has such; and whether they stay in four bits where E4M3 is not asked
// for: if all are, and none begins within another's piece.
std::vector<Linear> layer_matrix(const Operator& op);
bool are_q4(const std::vector<Linear>& parts);

// The weights on the device, which it frees. Matrices lie in one block, since memory is given out slowly: they are placed first, and only then,
// when it is known how much there is of them, are they all read and copied; see loader.h. Those in four bits
// are copied as the file has them, and put into our order there.
class CudaWeights {
 public:
  // as_fp8: matrices become E4M3 with a scale for each row, or stay that, but for the embedding, the LM head and what routes or is routed to. Else all
  // but the embedding and what routes or is routed to stay in four bits where the file has them so.
  CudaWeights(const ModelFile& file, const ModelConfig& config, Team& team, bool as_fp8);
  CudaWeights(const CudaWeights&) = delete;
  CudaWeights& operator=(const CudaWeights&) = delete;

  // All of a model's, once. Their weights are on the device when it returns.
  std::vector<CudaOperator> place(const std::vector<Operator>& operators);
  const float* vector(const std::vector<float>& values);

  uint64_t bytes() const { return bytes_; }
  // Of matrices, as the file has them.
  uint64_t read_bytes() const { return read_bytes_; }
  // Of the largest matrix in four bits, as bfloat16.
  int64_t unpacked_bytes() const;
  // How many matrices are of which type, for a person.
  std::string describe() const;
  // What the matrices ask of a step; see add_work of the CPU's.
  const MatrixWork& work() const { return work_; }

 private:
  CudaOperator place(const Operator& op);
  DeviceNorm norm(const Norm& norm);
  const float* vector(const FileTensor* tensor);
  DeviceMatrix matrix(const std::vector<const FileTensor*>& tensors, DeviceMatrix::Type type = DeviceMatrix::Type::bf16);
  DeviceLinear linear(const std::vector<Linear>& parts, DeviceMatrix::Type type = DeviceMatrix::Type::bf16);
  DeviceLinear layer(const Operator& op);
  uint64_t take(int64_t bytes);
  void count(const DeviceMatrix& weight, double part);

  const ModelFile& file_;
  const ModelConfig config_;
  Team& team_;
  const bool as_fp8_;
  std::deque<DeviceArray<uint8_t>> vectors_;
  DeviceArray<uint8_t> block_;  // of all matrices
  uint64_t block_bytes_ = 0;
  std::vector<MatrixCopy> copies_;
  // A tied embedding is stored once. Their addresses are still places in the block.
  std::map<std::pair<std::vector<const FileTensor*>, DeviceMatrix::Type>, DeviceMatrix> matrices_;
  uint64_t bytes_ = 0, read_bytes_ = 0;
  MatrixWork work_;
};

}  // namespace millrace
