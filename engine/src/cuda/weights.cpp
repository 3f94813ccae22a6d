#include <algorithm>

#include "../base/text.h"
#include "operators.h"

namespace millrace {
namespace {

// What kernels may read behind a matrix's last row.
constexpr int spare_rows = 64;
// What every matrix begins at a multiple of.
constexpr uint64_t alignment_bytes = 512;

bool are_e4m3(const std::vector<const FileTensor*>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const FileTensor* tensor) { return tensor->e4m3 != nullptr; });
}

template <typename Visit>
void for_each_matrix(CudaOperator& op, const Visit& visit) {
  const auto visit_all = [&](auto& each) {
    if constexpr (requires { each.weight; }) visit(each.weight);
    if constexpr (requires { each.linear; }) visit(each.linear.weight);
    if constexpr (requires { each.router; })
      for (DeviceLinear* linear : {&each.router, &each.wide, &each.down}) visit(linear->weight);
  };
  std::visit(visit_all, op);
}

// The address of what was placed so far behind `base`.
template <typename Value>
const Value* moved(const uint8_t* base, const Value* place) {
  return reinterpret_cast<const Value*>(base + reinterpret_cast<uintptr_t>(place));
}

const char* name_of(DeviceMatrix::Type type) {
  return type == DeviceMatrix::Type::bf16 ? "bfloat16" : type == DeviceMatrix::Type::fp8 ? "E4M3 with a scale for each row" : "4 bits with a scale and a minimum for each 32";
}

}  // namespace

std::vector<Linear> layer_matrix(const Operator& op) {
  if (const auto* qkv = std::get_if<Qkv>(&op)) return qkv->parts;
  if (const auto* project = std::get_if<Project>(&op)) return {project->output};
  if (const auto* down = std::get_if<Down>(&op)) return {down->down};
  const auto* gate_up = std::get_if<GateUp>(&op);
  if (gate_up == nullptr) return {};
  return gate_up->gate.weight != nullptr ? std::vector{gate_up->gate, gate_up->up} : std::vector{gate_up->up};
}

bool are_q4(const std::vector<Linear>& parts) {
  return !parts.empty() && std::all_of(parts.begin(), parts.end(), [&](const Linear& part) {
    const FileTensor& weight = *part.weight;
    return is_q4_source(weight.type) && weight.places.empty() && (parts.size() == 1 || weight.rows() % q4_rows == 0);
  });
}

CudaWeights::CudaWeights(const ModelFile& file, const ModelConfig& config, Team& team, bool as_fp8) : file_(file), config_(config), team_(team), as_fp8_(as_fp8) {}

std::vector<CudaOperator> CudaWeights::place(const std::vector<Operator>& operators) {
  std::vector<CudaOperator> placed;
  for (const Operator& op : operators) placed.push_back(place(op));
  block_ = DeviceArray<uint8_t>(block_bytes_);
  for (CudaOperator& op : placed)
    for_each_matrix(op, [&](DeviceMatrix& matrix) {
      matrix.values = moved(block_.get(), static_cast<const uint8_t*>(matrix.values));
      if (matrix.type == DeviceMatrix::Type::fp8) matrix.scales = moved(block_.get(), matrix.scales);
    });
  load_matrices(file_, team_, copies_, block_.get());
  copies_.clear();
  return placed;
}

const float* CudaWeights::vector(const std::vector<float>& values) {
  if (values.empty()) return nullptr;
  const size_t bytes = values.size() * sizeof(float);
  DeviceArray<uint8_t>& array = vectors_.emplace_back(bytes);
  check(cudaMemcpy(array.get(), values.data(), bytes, cudaMemcpyHostToDevice), "copying weights");
  bytes_ += bytes;
  return reinterpret_cast<const float*>(array.get());
}

const float* CudaWeights::vector(const FileTensor* tensor) { return vector(read_vector(tensor)); }

DeviceNorm CudaWeights::norm(const Norm& norm) {
  if (norm.weight == nullptr) return {};
  return {vector(norm.weight), vector(norm.bias), norm.kind == Norm::Kind::layer, norm.epsilon, static_cast<int>(norm.weight->columns())};
}

// So many bytes of the block, from where they begin.
uint64_t CudaWeights::take(int64_t bytes) {
  const uint64_t begin = block_bytes_;
  block_bytes_ += (static_cast<uint64_t>(bytes) + alignment_bytes - 1) / alignment_bytes * alignment_bytes;
  return begin;
}

DeviceMatrix CudaWeights::matrix(const std::vector<const FileTensor*>& tensors, DeviceMatrix::Type type) {
  if (const auto found = matrices_.find({tensors, type}); found != matrices_.end()) return found->second;
  DeviceMatrix placed{.type = type, .columns = padded_columns(static_cast<int>(tensors[0]->columns()))};
  if (type == DeviceMatrix::Type::q4) placed.own_max = stream_tokens_max;
  for (const FileTensor* tensor : tensors) placed.rows += static_cast<int>(tensor->rows());
  const bool is_quantized = type == DeviceMatrix::Type::fp8, keeps_bits = is_quantized && are_e4m3(tensors);
  const int64_t rows = int64_t{placed.rows} + spare_rows;
  const uint64_t values_at = take(rows * placed.row_bytes()), scales_at = is_quantized ? take(rows * int64_t{sizeof(float)}) : 0;
  copies_.push_back({tensors, type, keeps_bits, placed.columns, values_at, scales_at});
  bytes_ += static_cast<uint64_t>(placed.rows * placed.row_bytes());
  for (const FileTensor* tensor : tensors) read_bytes_ += static_cast<uint64_t>(tensor->rows() * (keeps_bits ? tensor->columns() : tensor->row_bytes()));
  placed.values = reinterpret_cast<const void*>(values_at);
  if (is_quantized) placed.scales = reinterpret_cast<const float*>(scales_at);
  return matrices_[{tensors, type}] = placed;
}

int64_t CudaWeights::unpacked_bytes() const {
  int64_t bytes = 0;
  for (const auto& [key, matrix] : matrices_)
    if (matrix.type == DeviceMatrix::Type::q4) bytes = std::max(bytes, int64_t{matrix.rows} * matrix.columns * 2);
  return bytes;
}

std::string CudaWeights::describe() const {
  std::map<DeviceMatrix::Type, int> counts;
  for (const auto& [key, matrix] : matrices_) counts[matrix.type]++;
  std::string all;
  for (const auto& [type, count] : counts) all += text(all.empty() ? "" : ", ", count, count == 1 ? " matrix in " : " matrices in ", name_of(type));
  return all;
}

// Rows of several matrices one after another.
DeviceLinear CudaWeights::linear(const std::vector<Linear>& parts, DeviceMatrix::Type type) {
  std::vector<const FileTensor*> weights;
  for (const Linear& part : parts) weights.push_back(part.weight);
  return {matrix(weights, type), vector(biases_of(parts))};
}

DeviceLinear CudaWeights::layer(const Operator& op) {
  const std::vector<Linear> parts = layer_matrix(op);
  DeviceLinear placed = linear(parts, as_fp8_ ? DeviceMatrix::Type::fp8 : are_q4(parts) ? DeviceMatrix::Type::q4 : DeviceMatrix::Type::bf16);
  // Of E4M3's longest matrices cuBLASLt makes blocks enough to keep memory busy, and multiplies twice as fast.
  const bool is_long_fp8 = placed.weight.type == DeviceMatrix::Type::fp8 && std::holds_alternative<GateUp>(op);
  if (placed.weight.type != DeviceMatrix::Type::q4) placed.weight.own_max = is_long_fp8 ? 96 : wide_tokens_max;
  return placed;
}

// A matrix of which each token of a step uses `part`.
void CudaWeights::count(const DeviceMatrix& weight, double part) {
  const double products = part * weight.rows * weight.columns;
  work_.weight_bytes += static_cast<uint64_t>(part * static_cast<double>(weight.rows * weight.row_bytes()));
  work_.token_multiply_adds += static_cast<uint64_t>(products);
}

CudaOperator CudaWeights::place(const Operator& op) {
  struct Placer {
    CudaWeights& to;

    CudaOperator operator()(const Embed& embed) const { return CudaEmbed{to.matrix({embed.weight}), embed.scale}; }
    CudaOperator operator()(const Qkv& qkv) const {
      CudaQkv placed{qkv.layer, to.norm(qkv.norm), to.layer(qkv), to.norm(qkv.q_norm), to.norm(qkv.k_norm), qkv.rope, qkv.query_scale};
      if (placed.q_norm.is_layer || placed.k_norm.is_layer) throw CudaError("norms of q and k of kind layer are not run on a GPU");
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const Attend& attend) const {
      const ModelConfig& config = to.config_;
      return CudaAttend{attend.layer, {config.heads, config.kv_heads, config.head_dim, attend.window, attend.soft_cap, to.vector(attend.sinks)}};
    }
    CudaOperator operator()(const Project& project) const {
      CudaProject placed{to.layer(project), to.norm(project.post_norm)};
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const GateUp& gate) const {
      const bool is_gated = gate.gate.weight != nullptr;
      CudaGateUp placed{to.norm(gate.norm), to.layer(gate), is_gated, static_cast<int>(gate.up.weight->rows()), gate.activation};
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const Down& down) const {
      CudaDown placed{to.layer(down), to.norm(down.post_norm)};
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const Experts& experts) const {
      const bool is_gated = experts.experts[0].gate.weight != nullptr;
      std::vector<Linear> wide, down;
      for (const Expert& expert : experts.experts) {
        if (is_gated) wide.push_back(expert.gate);
        wide.push_back(expert.up);
        down.push_back(expert.down);
      }
      const auto count = static_cast<int>(experts.experts.size());
      CudaExperts placed{to.norm(experts.norm), to.linear({experts.router}), to.linear(wide), to.linear(down), is_gated, count, experts.used,
                         static_cast<int>(experts.experts[0].up.weight->rows()), experts.normalized, experts.activation};
      to.count(placed.router.weight, 1);
      for (const DeviceMatrix& matrix : {placed.wide.weight, placed.down.weight}) to.count(matrix, experts.used / static_cast<double>(count));
      return placed;
    }
    CudaOperator operator()(const Logits& logits) const {
      const bool is_q4 = !to.as_fp8_ && are_q4({logits.output});
      CudaLogits placed{to.norm(logits.norm), to.linear({logits.output}, is_q4 ? DeviceMatrix::Type::q4 : DeviceMatrix::Type::bf16), logits.soft_cap};
      const DeviceMatrix& weight = placed.linear.weight;
      to.work_.weight_bytes += static_cast<uint64_t>(weight.rows * weight.row_bytes());
      to.work_.sample_multiply_adds += static_cast<uint64_t>(weight.rows) * static_cast<uint64_t>(weight.columns);
      return placed;
    }
  };
  return std::visit(Placer{*this}, op);
}

}  // namespace millrace
