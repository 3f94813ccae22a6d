// The operators of attention: q, k and v into memory, attending, projecting.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend.h"
#include "partition.h"

namespace millrace {

// cos and sin of a token's angles, in the order in which its style's kernel reads them.
void CpuBackend::fill_turns(Turns& turns, int64_t token) {
  const int pairs = turns.rope.dims() / 2;
  const bool halves = turns.rope.style == Rope::Style::halves;
  float* out = &turns.values[token * 2 * pairs];
  for (int i = 0; i < pairs; i++) {
    const double angle = static_cast<double>(tokens_[token].position) * turns.rope.frequencies[i];
    out[halves ? i : 2 * i] = turns.rope.attention_factor * static_cast<float>(std::cos(angle));
    out[halves ? pairs + i : 2 * i + 1] = turns.rope.attention_factor * static_cast<float>(std::sin(angle));
  }
}

void CpuBackend::run_operator(const CpuQkv& op) {
  const Activations x = normed_input(op.norm, tokens(), op.linear.weight.quantized());
  const int64_t stride = op.linear.weight.rows;
  multiply(kernels_.matmul, op.linear.weight, x, tokens(), qkv_.data(), stride, 1);
  if (op.q_norm || !op.linear.bias.empty()) finish_heads(op);

  const KvPlan::Place place = slots_.plan().layers[op.layer];
  const KvLayout& kv = slots_.plan().groups[place.group];
  const Turns& turns = turns_[op.rope];
  const int head_dim = config_.head_dim, group = config_.heads / config_.kv_heads, pairs = turns.rope.dims() / 2;
  const auto rope = turns.rope.style == Rope::Style::halves ? kernels_.rope_halves : kernels_.rope;
  // One token's heads take less time than to call somebody.
  team_.parallel(int64_t{tokens()} * config_.kv_heads, config_.kv_heads, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t t = unit / config_.kv_heads;
      const int kv_head = static_cast<int>(unit % config_.kv_heads), position = tokens_[t].position;
      const float* turn = &turns.values[t * 2 * pairs];
      float* q = &qkv_[t * stride];
      float* k = q + int64_t{config_.heads + kv_head} * head_dim;
      float* v = k + int64_t{config_.kv_heads} * head_dim;
      for (int i = 0; i < group; i++) rope(q + int64_t{kv_head * group + i} * head_dim, turn, pairs, head_dim, op.query_scale);
      rope(k, turn, pairs, head_dim, 1);
      uint8_t* page = slots_.base(tokens_[t].slot, place.group) + position / kv.page_tokens * kv.page_bytes;
      kernels_.store_key(k, kv, page + kv.offset(place.layer, false, kv_head), position % kv.page_tokens);
      kernels_.store_value(v, kv, page + kv.offset(place.layer, true, kv_head), position % kv.page_tokens);
    }
  });
}

// Biases, and norms of q and k: over each head, or over all heads at once where the norm is that wide.
void CpuBackend::finish_heads(const CpuQkv& op) {
  const int rows = op.linear.weight.rows, q_width = config_.heads * config_.head_dim, k_width = config_.kv_heads * config_.head_dim;
  const auto normalize_heads = [&](const PackedNorm& norm, float* heads, int width) {
    const int n = static_cast<int>(norm.weight.size());
    for (int at = 0; n > 0 && at < width; at += n) normalize(norm, heads + at, n, heads + at);
  };
  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      float* q = &qkv_[t * rows];
      if (!op.linear.bias.empty()) kernels_.add_scaled(q, op.linear.bias.data(), 1, rows);
      normalize_heads(op.q_norm, q, q_width);
      normalize_heads(op.k_norm, q + q_width, k_width);
    }
  });
}

void CpuBackend::run_operator(const CpuAttend& op) {
  team_.parallel(static_cast<int64_t>(pieces_.size()), 1, [&](int64_t begin, int64_t end, int rank) {
    for (int64_t i = begin; i < end; i++) attend_piece(op, pieces_[i], scratch_[rank].data());
  });
}

float* CpuBackend::partial(int decode, int head, int partition) {
  return &partials_[((int64_t{decode} * config_.heads + head) * partitions_ + partition) * (2 + config_.head_dim)];
}

// What the partitions of a head are merged into: its sink, or nothing.
void CpuBackend::begin_merge(const CpuAttend& op, int head, float* merged) const {
  const int result = 2 + config_.head_dim;
  if (op.sinks.empty())
    std::fill(merged, merged + result, 0.0f);
  else
    std::copy_n(&op.sinks[int64_t{head} * result], result, merged);
}

void CpuBackend::attend_piece(const CpuAttend& op, const Piece& piece, float* scratch) {
  const int head_dim = config_.head_dim, result = 2 + head_dim;
  const int64_t stride = int64_t{config_.heads + 2 * config_.kv_heads} * head_dim;
  // A sink comes before the first partition, so that it is merged where the row has one token as where it has many.
  const bool merges = piece.partition < 0 || (piece.partition == 0 && !op.sinks.empty());
  AttendTask task = {};
  task.count = piece.tokens * piece.heads;
  const KvPlan::Place place = slots_.plan().layers[op.layer];
  task.layout = &slots_.plan().groups[place.group];
  task.base = slots_.base(tokens_[piece.token].slot, place.group);
  task.layer = place.layer;
  task.kv_head = piece.head / (config_.heads / config_.kv_heads);
  task.soft_cap = op.soft_cap;
  float* merged[queries_max];
  for (int n = 0; n < task.count; n++) {
    const int t = piece.token + n / piece.heads, head = piece.head + n % piece.heads;
    float* own = piece.partition < 0 ? scratch + (queries_max + n) * result : partial(tokens_[t].decode, head, piece.partition);
    task.queries[n] = &qkv_[t * stride + int64_t{head} * head_dim];
    task.visible[n] = tokens_[t].position + 1;
    task.first[n] = op.window > 0 ? std::max(0, task.visible[n] - op.window) : 0;
    task.partial[n] = merges ? scratch + n * result : own;
    if (merges) begin_merge(op, head, merged[n] = own);
  }
  const int begin = piece.partition < 0 ? task.first[0] / partition_tokens : piece.partition;
  const int end = piece.partition < 0 ? (task.visible[task.count - 1] - 1) / partition_tokens : piece.partition;
  for (int partition = begin; partition <= end; partition++) {
    task.begin = partition * partition_tokens;
    task.end = task.begin + partition_tokens;
    kernels_.attend(task);
    for (int n = 0; merges && n < task.count; n++) kernels_.merge(merged[n], task.partial[n], head_dim);
  }
  if (piece.partition >= 0) return;
  for (int n = 0; n < task.count; n++) {
    const int64_t t = piece.token + n / piece.heads, head = piece.head + n % piece.heads;
    kernels_.finish(merged[n], head_dim, &attended_[(t * config_.heads + head) * head_dim]);
  }
}

void CpuBackend::run_operator(const CpuProject& op) {
  const int head_dim = config_.head_dim, width = config_.heads * head_dim;
  const Activations x = activate(input_, tokens(), width, op.linear.weight.quantized(), [&](int t, float* out, int rank) {
    if (tokens_[t].decode < 0) {
      std::memcpy(out, &attended_[int64_t{t} * width], sizeof(float) * width);
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
  add_to_stream(op.linear, op.post_norm, x);
}

}  // namespace millrace
