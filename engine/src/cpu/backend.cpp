#include "backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace millrace {
namespace {

// Attention over a long context is cut into partitions of this many positions, whose results are merged in order: fixed by position
// alone, so that neither the batch nor the threads can change a bit. A multiple of chunk_tokens.
constexpr int partition_tokens = 256;

std::vector<float> read_vector(const FileTensor* tensor) {
  std::vector<float> values(tensor->columns());
  read_row(*tensor, 0, values.data());
  return values;
}

}  // namespace

CpuBackend::CpuBackend(const Model& model, const KvSlots& slots, Team& team, const Kernels& kernels, Precision precision, int tokens_max)
    : config_(model.config), slots_(slots), team_(team), kernels_(kernels), precision_(precision), scratch_(team.size()) {
  for (const Operator& op : model.operators) operators_.push_back(pack_operator(op));

  const int64_t attention = int64_t{config_.heads} * config_.head_dim;
  const int64_t widest = std::max<int64_t>({config_.hidden, attention, config_.ffn});
  x_.resize(int64_t{tokens_max} * config_.hidden);
  turns_.resize(int64_t{tokens_max} * config_.rope_dims);
  qkv_.resize(tokens_max * (attention + int64_t{2} * config_.kv_heads * config_.head_dim));
  attended_.resize(tokens_max * attention);
  gated_.resize(int64_t{tokens_max} * config_.ffn);
  input_.reserve(tokens_max, widest);
  for (auto& scratch : scratch_) scratch.resize(2 * queries_max * (2 + config_.head_dim));

  for (int i = 0; i < config_.rope_dims / 2; i++) {
    const double frequency = std::pow(static_cast<double>(config_.rope_base), -2.0 * i / config_.rope_dims);
    rope_frequencies_.push_back(static_cast<float>(config_.rope_factors.empty() ? frequency : frequency / config_.rope_factors[i]));
  }
}

CpuBackend::CpuOperator CpuBackend::pack_operator(const Operator& op) {
  const bool as_float32 = precision_ == Precision::float32;
  struct Packer {
    bool as_float32;
    PackLog* log;
    CpuOperator operator()(const Embed& o) const { return CpuEmbed{o.weight}; }
    CpuOperator operator()(const Qkv& o) const { return CpuQkv{o.layer, read_vector(o.norm), pack({o.q, o.k, o.v}, false, as_float32, log)}; }
    CpuOperator operator()(const Attend& o) const { return CpuAttend{o.layer}; }
    CpuOperator operator()(const Project& o) const { return CpuProject{pack({o.weight}, false, as_float32, log)}; }
    CpuOperator operator()(const GateUp& o) const { return CpuGateUp{read_vector(o.norm), pack({o.gate, o.up}, true, as_float32, log)}; }
    CpuOperator operator()(const Down& o) const { return CpuDown{pack({o.weight}, false, as_float32, log)}; }
    CpuOperator operator()(const Logits& o) const { return CpuLogits{read_vector(o.norm), pack({o.weight}, false, as_float32, log)}; }
  };
  return std::visit(Packer{as_float32, &pack_log_}, op);
}

std::vector<int32_t> CpuBackend::run(const Plan& plan) {
  lay_out(plan);
  for (const CpuOperator& op : operators_) std::visit([this](const auto& each) { run_operator(each); }, op);
  return sample(plan);
}

// Flattens the rows into tokens, samples and pieces of attention.
void CpuBackend::lay_out(const Plan& plan) {
  tokens_.clear();
  sampled_tokens_.clear();
  pieces_.clear();
  partitions_ = 0;
  int decodes = 0;
  for (const Row& row : plan.rows) {
    const int first = tokens();
    const bool single = row.count == 1;
    if (single) partitions_ = std::max(partitions_, row.first / partition_tokens + 1);
    for (int i = 0; i < row.count; i++)
      tokens_.push_back({plan.tokens[first + i], row.first + i, slots_.base(row.slot), single ? decodes : -1});
    for (int i = row.count - row.samples; i < row.count; i++) sampled_tokens_.push_back(first + i);
    if (single) decodes++;
    lay_out_attention(first, row.count);
  }
  partials_.resize(int64_t{decodes} * config_.heads * partitions_ * (2 + config_.head_dim));
  logits_out_ = plan.logits;
  if (logits_out_ == nullptr) {
    logits_.resize(sampled_tokens_.size() * config_.vocabulary);
    logits_out_ = logits_.data();
  }
}

void CpuBackend::lay_out_attention(int token, int count) {
  const int group = config_.heads / config_.kv_heads;
  const int heads_max = std::min(group, queries_max);
  const int tokens_max = count == 1 ? 1 : std::max(1, queries_max / group);
  for (int kv_head = 0; kv_head < config_.kv_heads; kv_head++)
    for (int done = 0; done < group; done += heads_max) {
      const int head = kv_head * group + done, heads = std::min(heads_max, group - done);
      if (count == 1) {
        const int partitions = tokens_[token].position / partition_tokens + 1;
        for (int partition = 0; partition < partitions; partition++) pieces_.push_back({token, 1, head, heads, partition});
      } else {
        for (int i = 0; i < count; i += tokens_max) pieces_.push_back({token + i, std::min(tokens_max, count - i), head, heads, -1});
      }
    }
}

void CpuBackend::run_operator(const CpuEmbed& op) {
  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      read_row(*op.weight, tokens_[t].id, &x_[t * config_.hidden]);
      for (int i = 0; i < config_.rope_dims / 2; i++) {
        const double angle = static_cast<double>(tokens_[t].position) * rope_frequencies_[i];
        turns_[t * config_.rope_dims + 2 * i] = static_cast<float>(std::cos(angle));
        turns_[t * config_.rope_dims + 2 * i + 1] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void CpuBackend::run_operator(const CpuQkv& op) {
  const Activations x = activate(tokens(), op.weight, [&](int t, float* out, int) {
    kernels_.norm(&x_[int64_t{t} * config_.hidden], op.norm.data(), config_.norm_epsilon, config_.hidden, out);
  });
  const int64_t stride = op.weight.rows;
  multiply(kernels_.matmul, op.weight, x, tokens(), qkv_.data(), stride, 1);

  const KvLayout& kv = slots_.layout();
  const int head_dim = config_.head_dim, group = config_.heads / config_.kv_heads, pairs = config_.rope_dims / 2;
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  // One token's heads take less time than to call somebody.
  team_.parallel(int64_t{tokens()} * config_.kv_heads, config_.kv_heads, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t t = unit / config_.kv_heads;
      const int kv_head = static_cast<int>(unit % config_.kv_heads), position = tokens_[t].position;
      const float* turns = &turns_[t * config_.rope_dims];
      float* q = &qkv_[t * stride];
      float* k = q + int64_t{config_.heads + kv_head} * head_dim;
      float* v = k + int64_t{config_.kv_heads} * head_dim;
      for (int i = 0; i < group; i++) kernels_.rope(q + int64_t{kv_head * group + i} * head_dim, turns, pairs, head_dim, scale);
      kernels_.rope(k, turns, pairs, head_dim, 1);
      uint8_t* page = const_cast<uint8_t*>(tokens_[t].base) + position / kv.page_tokens * kv.page_bytes;
      kernels_.store_key(k, kv, page + kv.offset(op.layer, false, kv_head), position % kv.page_tokens);
      kernels_.store_value(v, kv, page + kv.offset(op.layer, true, kv_head), position % kv.page_tokens);
    }
  });
}

void CpuBackend::run_operator(const CpuAttend& op) {
  team_.parallel(static_cast<int64_t>(pieces_.size()), 1, [&](int64_t begin, int64_t end, int rank) {
    for (int64_t i = begin; i < end; i++) attend_piece(op.layer, pieces_[i], scratch_[rank].data());
  });
}

float* CpuBackend::partial(int decode, int head, int partition) {
  return &partials_[((int64_t{decode} * config_.heads + head) * partitions_ + partition) * (2 + config_.head_dim)];
}

void CpuBackend::attend_piece(int layer, const Piece& piece, float* scratch) {
  const int head_dim = config_.head_dim, result = 2 + head_dim;
  const int64_t stride = int64_t{config_.heads + 2 * config_.kv_heads} * head_dim;
  AttendTask task = {};
  task.count = piece.tokens * piece.heads;
  task.layout = &slots_.layout();
  task.base = tokens_[piece.token].base;
  task.layer = layer;
  task.kv_head = piece.head / (config_.heads / config_.kv_heads);
  for (int n = 0; n < task.count; n++) {
    const int t = piece.token + n / piece.heads, head = piece.head + n % piece.heads;
    task.queries[n] = &qkv_[t * stride + int64_t{head} * head_dim];
    task.visible[n] = tokens_[t].position + 1;
    task.partial[n] = piece.partition < 0 ? scratch + n * result : partial(tokens_[t].decode, head, piece.partition);
  }
  if (piece.partition >= 0) {
    task.begin = piece.partition * partition_tokens;
    task.end = task.begin + partition_tokens;
    return kernels_.attend(task);
  }
  float* merged = scratch + queries_max * result;
  std::fill(merged, merged + task.count * result, 0.0f);
  const int end = task.visible[task.count - 1];
  for (task.begin = 0; task.begin < end; task.begin += partition_tokens) {
    task.end = task.begin + partition_tokens;
    kernels_.attend(task);
    for (int n = 0; n < task.count; n++) kernels_.merge(merged + n * result, task.partial[n], head_dim);
  }
  for (int n = 0; n < task.count; n++) {
    const int64_t t = piece.token + n / piece.heads, head = piece.head + n % piece.heads;
    kernels_.finish(merged + n * result, head_dim, &attended_[(t * config_.heads + head) * head_dim]);
  }
}

void CpuBackend::run_operator(const CpuProject& op) {
  const int head_dim = config_.head_dim;
  const Activations x = activate(tokens(), op.weight, [&](int t, float* out, int rank) {
    if (tokens_[t].decode < 0) {
      std::memcpy(out, &attended_[int64_t{t} * config_.heads * head_dim], sizeof(float) * config_.heads * head_dim);
      return;
    }
    const int partitions = tokens_[t].position / partition_tokens + 1;
    float* merged = scratch_[rank].data();
    for (int head = 0; head < config_.heads; head++) {
      std::fill(merged, merged + 2 + head_dim, 0.0f);
      for (int p = 0; p < partitions; p++) kernels_.merge(merged, partial(tokens_[t].decode, head, p), head_dim);
      kernels_.finish(merged, head_dim, out + int64_t{head} * head_dim);
    }
  });
  multiply(kernels_.matmul_add, op.weight, x, tokens(), x_.data(), config_.hidden, 1);
}

void CpuBackend::run_operator(const CpuGateUp& op) {
  const Activations x = activate(tokens(), op.weight, [&](int t, float* out, int) {
    kernels_.norm(&x_[int64_t{t} * config_.hidden], op.norm.data(), config_.norm_epsilon, config_.hidden, out);
  });
  multiply(kernels_.matmul_gated, op.weight, x, tokens(), gated_.data(), config_.ffn, 2);
}

void CpuBackend::run_operator(const CpuDown& op) {
  const Activations x = activate(tokens(), op.weight, [&](int t, float* out, int) {
    std::memcpy(out, &gated_[int64_t{t} * config_.ffn], sizeof(float) * config_.ffn);
  });
  multiply(kernels_.matmul_add, op.weight, x, tokens(), x_.data(), config_.hidden, 1);
}

void CpuBackend::run_operator(const CpuLogits& op) {
  const int samples = static_cast<int>(sampled_tokens_.size());
  if (samples == 0) return;
  // A prompt's step may sample more positions than the buffers hold tokens of one step: never, since each is one of its tokens.
  const Activations x = activate(samples, op.weight, [&](int s, float* out, int) {
    kernels_.norm(&x_[int64_t{sampled_tokens_[s]} * config_.hidden], op.norm.data(), config_.norm_epsilon, config_.hidden, out);
  });
  multiply(kernels_.matmul, op.weight, x, samples, logits_out_, config_.vocabulary, 1);
}

// Fills a matrix's input, token by token, and quantizes it where the matrix is quantized.
template <typename Fill>
Activations CpuBackend::activate(int tokens, const PackedMatrix& weight, const Fill& fill) {
  const int columns = weight.columns;
  team_.parallel(tokens, 1, [&](int64_t begin, int64_t end, int rank) {
    for (int t = static_cast<int>(begin); t < end; t++) {
      float* values = &input_.values[int64_t{t} * columns];
      fill(t, values, rank);
      if (weight.quantized()) kernels_.quantize(values, columns, input_.row(t, columns));
    }
  });
  return input_.view(columns);
}

// Spreads a matrix's bands over the team, in chunks small enough that a slow member holds nobody up.
void CpuBackend::multiply(void (*kernel)(const MatmulTask&), const PackedMatrix& weight, const Activations& x, int tokens, float* y,
                          int64_t stride, int bands_a_unit) {
  const int units = weight.bands / bands_a_unit;
  const int chunk = std::max(1, units / (8 * team_.size()));
  team_.parallel(units, chunk, [&](int64_t begin, int64_t end, int) {
    kernel({&weight, x, tokens, static_cast<int>(begin), static_cast<int>(end), y, stride});
  });
}

std::vector<int32_t> CpuBackend::sample(const Plan& plan) {
  std::vector<int32_t> sampled(plan.samplers.size());
  team_.parallel(static_cast<int64_t>(plan.samplers.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; s++) {
      const std::span<float> logits(logits_out_ + s * config_.vocabulary, config_.vocabulary);
      // The token sampled from position p stands at p + 1.
      sampled[s] = plan.samplers[s]->sample(logits, static_cast<uint64_t>(tokens_[sampled_tokens_[s]].position) + 1);
    }
  });
  return sampled;
}

void CpuBackend::Buffer::reserve(int64_t tokens, int64_t columns) {
  const int64_t blocks = (columns + block_values - 1) / block_values;
  values.resize(tokens * columns);
  quants.resize(tokens * columns);
  scales.resize(tokens * blocks);
  sums.resize(tokens * blocks);
  totals.resize(tokens * blocks);
}

QuantizedRow CpuBackend::Buffer::row(int token, int columns) {
  const int64_t block = int64_t{token} * (columns / block_values);
  return {&quants[int64_t{token} * columns], &scales[block], &sums[block], &totals[block]};
}

Activations CpuBackend::Buffer::view(int columns) const {
  return {values.data(), quants.data(), scales.data(), sums.data(), totals.data(), columns};
}

}  // namespace millrace
