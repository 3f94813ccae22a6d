#include <algorithm>
#include <cstring>

#include "../base/text.h"
#include "operators.h"

namespace millrace {
namespace {

// Four of these stay in a server's last level of cache, between the thread that writes them and the link that takes them.
constexpr int64_t staged_bytes = 8 << 20;
constexpr int64_t chunk_bytes = 512 << 10;  // read by one thread at a time
// What kernels may read behind a matrix's last row.
constexpr int spare_rows = 64;

// One row as bfloat16, to the nearest; what is behind its columns is zero.
void put_row(const FileTensor& tensor, int64_t row, int columns, std::vector<float>& values, uint8_t* to) {
  const auto own = static_cast<int>(tensor.columns());
  if (tensor.type == Type::bf16) {
    std::memcpy(to, tensor.row(row), static_cast<size_t>(own) * 2);
  } else {
    values.resize(static_cast<size_t>(own));
    read_row(tensor, row, values.data());
    auto* rounded = reinterpret_cast<__nv_bfloat16*>(to);
    for (int i = 0; i < own; i++) rounded[i] = __float2bfloat16_rn(values[static_cast<size_t>(i)]);
  }
  std::memset(to + static_cast<int64_t>(own) * 2, 0, static_cast<size_t>(columns - own) * 2);
}

bool are_e4m3(const std::vector<const FileTensor*>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const FileTensor* tensor) { return tensor->e4m3 != nullptr; });
}

}  // namespace

CudaWeights::CudaWeights(const ModelFile& file, const ModelConfig& config, Team& team, bool as_fp8) : file_(file), config_(config), team_(team), as_fp8_(as_fp8) {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  for (Staged& each : staged_) {
    each.memory = PinnedArray<uint8_t>(static_cast<size_t>(staged_bytes));
    if (as_fp8) each.unquantized = DeviceArray<uint8_t>(static_cast<size_t>(staged_bytes));
    check(cudaEventCreateWithFlags(&each.copied, cudaEventDisableTiming), "creating an event");
  }
}

CudaWeights::~CudaWeights() {
  (void)cudaStreamSynchronize(stream_);
  for (Staged& each : staged_)
    if (each.copied != nullptr) cudaEventDestroy(each.copied);
  cudaStreamDestroy(stream_);
}

void CudaWeights::finish() {
  check(cudaStreamSynchronize(stream_), "copying weights");
  for (Staged& each : staged_) {
    each.memory = {};
    each.unquantized = {};
  }
}

const float* CudaWeights::vector(const std::vector<float>& values) {
  if (values.empty()) return nullptr;
  const size_t bytes = values.size() * sizeof(float);
  DeviceArray<uint8_t>& array = arrays_.emplace_back(bytes);
  check(cudaMemcpy(array.get(), values.data(), bytes, cudaMemcpyHostToDevice), "copying weights");
  bytes_ += bytes;
  return reinterpret_cast<const float*>(array.get());
}

const float* CudaWeights::vector(const FileTensor* tensor) { return vector(read_vector(tensor)); }

DeviceNorm CudaWeights::norm(const Norm& norm) {
  if (norm.weight == nullptr) return {};
  return {vector(norm.weight), vector(norm.bias), norm.kind == Norm::Kind::layer, norm.epsilon, static_cast<int>(norm.weight->columns())};
}

// Rows first to first + count - 1 of the tensors' rows one after another.
void CudaWeights::copy_rows(const std::vector<const FileTensor*>& tensors, int64_t first, int64_t count, int columns, uint8_t* to) {
  int64_t begun = 0;  // rows of the tensors before this one
  for (const FileTensor* tensor : tensors) {
    const int64_t from = std::max<int64_t>(first - begun, 0), end = std::min(first + count - begun, tensor->rows());
    uint8_t* out = to + (begun + from - first) * columns * 2;
    begun += tensor->rows();
    if (from >= end) continue;
    if (tensor->type == Type::bf16 && tensor->places.empty() && tensor->columns() == columns) {
      const uint8_t* bytes = tensor->row(from);
      team_.parallel((end - from) * tensor->row_bytes(), chunk_bytes, [&](int64_t begin, int64_t stop, int) {
        if (const Status status = file_.read(bytes + begin, static_cast<size_t>(stop - begin), out + begin); !status.ok()) throw CudaError(status.message());
      });
      continue;
    }
    team_.parallel(end - from, 16, [&](int64_t begin, int64_t stop, int) {
      std::vector<float> values;
      for (int64_t row = begin; row < stop; row++) put_row(*tensor, from + row, columns, values, out + row * columns * 2);
    });
  }
}

// Rows that the file has as E4M3 keep their bits and their scales.
void CudaWeights::copy_e4m3(const std::vector<const FileTensor*>& tensors, int columns, uint8_t* values, float* scales) {
  for (const FileTensor* tensor : tensors) {
    const int64_t rows = tensor->rows(), rows_a_chunk = staged_bytes / columns;
    std::vector<float> all_scales(static_cast<size_t>(rows));
    for (int64_t first = 0; first < rows; first += rows_a_chunk) {
      const int64_t count = std::min(rows_a_chunk, rows - first);
      Staged& staged = next_staged();
      uint8_t* to = staged.memory.get();
      team_.parallel(count, 16, [&](int64_t begin, int64_t stop, int) {
        for (int64_t row = begin; row < stop; row++) {
          const E4m3Row own = tensor->e4m3(first + row);
          const auto width = static_cast<size_t>(tensor->columns());
          if (const Status status = file_.read(own.bits, width, to + row * columns); !status.ok()) throw CudaError(status.message());
          std::memset(to + row * columns + width, 0, static_cast<size_t>(columns) - width);
          all_scales[static_cast<size_t>(first + row)] = own.scale;
        }
      });
      check(cudaMemcpyAsync(values + first * columns, to, static_cast<size_t>(count * columns), cudaMemcpyHostToDevice, stream_), "copying weights");
      check(cudaEventRecord(staged.copied, stream_), "copying weights");
    }
    check(cudaMemcpy(scales, all_scales.data(), all_scales.size() * sizeof(float), cudaMemcpyHostToDevice), "copying weights");
    values += rows * columns;
    scales += rows;
  }
}

// The next of the ring, once what was in it is on the device.
CudaWeights::Staged& CudaWeights::next_staged() {
  Staged& staged = staged_[next_++ % staged_count];
  check(cudaEventSynchronize(staged.copied), "copying weights");
  return staged;
}

DeviceMatrix CudaWeights::matrix(const std::vector<const FileTensor*>& tensors, DeviceMatrix::Type type) {
  if (const auto found = matrices_.find(tensors); found != matrices_.end() && found->second.type == type) return found->second;
  DeviceMatrix placed{.type = type, .columns = padded_columns(static_cast<int>(tensors[0]->columns()))};
  for (const FileTensor* tensor : tensors) placed.rows += static_cast<int>(tensor->rows());
  const int64_t read_bytes = int64_t{placed.columns} * 2, rows_a_chunk = staged_bytes / read_bytes;
  if (rows_a_chunk == 0) throw CudaError(text("a matrix of ", placed.columns, " columns has rows that are too long"));
  uint8_t* values = arrays_.emplace_back(static_cast<size_t>((placed.rows + spare_rows) * placed.row_bytes())).get();
  const bool is_quantized = type == DeviceMatrix::Type::fp8;
  auto* scales = is_quantized ? reinterpret_cast<float*>(arrays_.emplace_back(static_cast<size_t>(placed.rows + spare_rows) * sizeof(float)).get()) : nullptr;
  const bool keeps_bits = is_quantized && are_e4m3(tensors);
  if (keeps_bits) copy_e4m3(tensors, placed.columns, values, scales);
  for (int64_t row = 0; !keeps_bits && row < placed.rows; row += rows_a_chunk) {
    Staged& staged = next_staged();
    const int64_t count = std::min<int64_t>(rows_a_chunk, placed.rows - row);
    copy_rows(tensors, row, count, placed.columns, staged.memory.get());
    uint8_t* to = is_quantized ? staged.unquantized.get() : values + row * read_bytes;
    check(cudaMemcpyAsync(to, staged.memory.get(), static_cast<size_t>(count * read_bytes), cudaMemcpyHostToDevice, stream_), "copying weights");
    if (is_quantized)
      quantize_rows(stream_, reinterpret_cast<const __nv_bfloat16*>(to), static_cast<int>(count), placed.columns, values + row * placed.columns, scales + row);
    check(cudaEventRecord(staged.copied, stream_), "copying weights");
  }
  bytes_ += static_cast<uint64_t>(placed.rows * placed.row_bytes());
  for (const FileTensor* tensor : tensors) read_bytes_ += static_cast<uint64_t>(tensor->rows() * (keeps_bits ? tensor->columns() : tensor->row_bytes()));
  placed.values = values;
  placed.scales = scales;
  return matrices_[tensors] = placed;
}

// Rows of several matrices one after another.
DeviceLinear CudaWeights::linear(const std::vector<Linear>& parts, DeviceMatrix::Type type) {
  std::vector<const FileTensor*> weights;
  for (const Linear& part : parts) weights.push_back(part.weight);
  return {matrix(weights, type), vector(biases_of(parts))};
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
      CudaQkv placed{qkv.layer, to.norm(qkv.norm), to.linear(qkv.parts, to.type()), to.norm(qkv.q_norm), to.norm(qkv.k_norm), qkv.rope, qkv.query_scale};
      if (placed.q_norm.is_layer || placed.k_norm.is_layer) throw CudaError("norms of q and k of kind layer are not run on a GPU");
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const Attend& attend) const {
      const ModelConfig& config = to.config_;
      return CudaAttend{attend.layer, {config.heads, config.kv_heads, config.head_dim, attend.window, attend.soft_cap, to.vector(attend.sinks)}};
    }
    CudaOperator operator()(const Project& project) const {
      CudaProject placed{to.linear({project.output}, to.type()), to.norm(project.post_norm)};
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const GateUp& gate) const {
      const bool is_gated = gate.gate.weight != nullptr;
      CudaGateUp placed{to.norm(gate.norm), is_gated ? to.linear({gate.gate, gate.up}, to.type()) : to.linear({gate.up}, to.type()), is_gated, static_cast<int>(gate.up.weight->rows()),
                        gate.activation};
      to.count(placed.linear.weight, 1);
      return placed;
    }
    CudaOperator operator()(const Down& down) const {
      CudaDown placed{to.linear({down.down}, to.type()), to.norm(down.post_norm)};
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
      CudaLogits placed{to.norm(logits.norm), to.linear({logits.output}), logits.soft_cap};
      const auto products = static_cast<uint64_t>(placed.linear.weight.rows) * static_cast<uint64_t>(placed.linear.weight.columns);
      to.work_.weight_bytes += products * 2;
      to.work_.sample_multiply_adds += products;
      return placed;
    }
  };
  return std::visit(Placer{*this}, op);
}

}  // namespace millrace
