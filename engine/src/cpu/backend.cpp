#include "backend.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

#include "partition.h"

namespace millrace {

CpuBackend::CpuBackend(const Model& model, const KvSlots& slots, Team& team, const Kernels& kernels, Precision precision, int tokens_max)
    : config_(model.config), slots_(slots), team_(team), kernels_(kernels), scratch_(team.size()) {
  for (const Operator& op : model.operators) operators_.push_back(pack_operator(op, config_, precision == Precision::float32, pack_log_));
  for (const Rope& rope : model.ropes) turns_.push_back({rope, std::vector<float>(int64_t{tokens_max} * rope.dims())});
  reserve(tokens_max);
}

MatrixWork CpuBackend::work() const {
  MatrixWork work;
  for (const CpuOperator& op : operators_) add_work(op, work);
  return work;
}

// Room for the widest that any operator yields or reads.
void CpuBackend::reserve(int tokens_max) {
  const int64_t attention = int64_t{config_.heads} * config_.head_dim, hidden = config_.hidden;
  int64_t widest = std::max(hidden, attention), ffn = 0, wide = 0;
  bool added = false;
  for (const CpuOperator& op : operators_) {
    if (const auto* gate_up = std::get_if<CpuGateUp>(&op)) {
      ffn = std::max<int64_t>(ffn, gate_up->gate.ffn);
      if (!gate_up->gate.fused) wide = std::max<int64_t>(wide, gate_up->gate.width());
    }
    if (const auto* project = std::get_if<CpuProject>(&op)) added |= project->post_norm || !project->linear.bias.empty();
    if (const auto* down = std::get_if<CpuDown>(&op)) added |= down->post_norm || !down->linear.bias.empty();
    if (const auto* routed = std::get_if<CpuExperts>(&op)) {
      const int64_t entries = int64_t{tokens_max} * routed->used, columns = routed->experts[0].gate.ffn;
      const size_t experts = routed->experts.size();
      routing_.scores.resize(static_cast<size_t>(tokens_max) * experts);
      for (auto* each : {&routing_.chosen, &routing_.entries}) each->resize(entries);
      routing_.weights.resize(entries);
      routing_.first.resize(experts + 1);
      routing_.input.reserve(entries, hidden);
      routing_.gated.reserve(entries, columns);
      routing_.wide.resize(entries * routed->experts[0].gate.width());
      routing_.added.resize(entries * hidden);
      added = true;
    }
  }
  x_.resize(tokens_max * hidden);
  qkv_.resize(tokens_max * (attention + int64_t{2} * config_.kv_heads * config_.head_dim));
  attended_.resize(tokens_max * attention);
  wide_.resize(tokens_max * wide);
  gated_.resize(tokens_max * ffn);
  if (added) added_.resize(tokens_max * hidden);
  input_.reserve(tokens_max, std::max(widest, ffn));
  for (auto& scratch : scratch_) scratch.resize(2 * queries_max * (2 + config_.head_dim));
}

std::vector<SampledToken> CpuBackend::finish() {
  const Plan plan = std::move(begun_.front());
  begun_.pop_front();
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
    for (int i = 0; i < row.count; i++) {
      const int32_t id = plan.tokens[first + i];
      tokens_.push_back({id == sampled_before ? last_tokens_[static_cast<size_t>(row.slot)] : id, row.first + i, row.slot, single ? decodes : -1});
    }
    for (int i = row.count - row.samples; i < row.count; i++) sampled_tokens_.push_back(first + i);
    if (single) decodes++;
    lay_out_attention(first, row.count);
  }
  assert(int64_t{tokens()} * config_.hidden <= static_cast<int64_t>(x_.size()));  // the schedule keeps to the step it was given
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
      float* x = &x_[t * config_.hidden];
      read_row(*op.weight, tokens_[t].id, x);
      if (op.scale != 1)
        for (int i = 0; i < config_.hidden; i++) x[i] *= op.scale;
      for (Turns& turns : turns_) fill_turns(turns, t);
    }
  });
}

void CpuBackend::run_operator(const CpuLogits& op) {
  const int samples = static_cast<int>(sampled_tokens_.size()), vocabulary = config_.vocabulary;
  if (samples == 0) return;
  // A prompt's step may sample more positions than the buffers hold tokens of one step: never, since each is one of its tokens.
  const Activations x = activate(input_, samples, config_.hidden, op.linear.weight.quantized(), [&](int s, float* out, int) {
    normalize(op.norm, &x_[int64_t{sampled_tokens_[s]} * config_.hidden], config_.hidden, out);
  });
  multiply(kernels_.matmul, op.linear.weight, x, samples, logits_out_, vocabulary, 1);
  if (op.soft_cap == 0 && op.linear.bias.empty()) return;
  team_.parallel(samples, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; s++) {
      float* logits = logits_out_ + s * vocabulary;
      for (size_t i = 0; i < op.linear.bias.size(); i++) logits[i] += op.linear.bias[i];
      if (op.soft_cap != 0) kernels_.soft_cap(logits, vocabulary, op.soft_cap);
    }
  });
}

Activations CpuBackend::normed_input(const PackedNorm& norm, int tokens, bool quantized) {
  return activate(input_, tokens, config_.hidden, quantized,
                  [&](int t, float* out, int) { normalize(norm, &x_[int64_t{t} * config_.hidden], config_.hidden, out); });
}

void CpuBackend::normalize(const PackedNorm& norm, const float* x, int n, float* y) const {
  if (!norm)
    std::memcpy(y, x, sizeof(float) * n);
  else if (norm.kind == Norm::Kind::layer)
    kernels_.layer_norm(x, norm.weight.data(), norm.bias.data(), norm.epsilon, n, y);
  else
    kernels_.norm(x, norm.weight.data(), norm.epsilon, n, y);
}

// x += post_norm(linear . input).
void CpuBackend::add_to_stream(const PackedLinear& linear, const PackedNorm& post_norm, const Activations& x) {
  const int hidden = config_.hidden;
  if (!post_norm && linear.bias.empty()) return multiply(kernels_.matmul_add, linear.weight, x, tokens(), x_.data(), hidden, 1);
  multiply(kernels_.matmul, linear.weight, x, tokens(), added_.data(), hidden, 1);
  team_.parallel(tokens(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; t++) {
      float* added = &added_[t * hidden];
      if (!linear.bias.empty()) kernels_.add_scaled(added, linear.bias.data(), 1, hidden);
      if (post_norm) normalize(post_norm, added, hidden, added);
      kernels_.add_scaled(&x_[t * hidden], added, 1, hidden);
    }
  });
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

std::vector<SampledToken> CpuBackend::sample(const Plan& plan) {
  std::vector<SampledToken> sampled(plan.samplers.size());
  team_.parallel(static_cast<int64_t>(plan.samplers.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; s++) {
      const std::span<float> logits(logits_out_ + s * config_.vocabulary, config_.vocabulary);
      // The token sampled from position p stands at p + 1.
      sampled[s].token = plan.samplers[s].sampler->sample(logits, static_cast<uint64_t>(tokens_[sampled_tokens_[s]].position) + 1);
      sampled[s].logprobs = plan.samplers[s].sampler->logprobs();
    }
  });
  for (size_t s = 0; s < sampled.size(); s++) {
    const auto slot = static_cast<size_t>(tokens_[sampled_tokens_[s]].slot);
    if (last_tokens_.size() <= slot) last_tokens_.resize(slot + 1);
    last_tokens_[slot] = sampled[s].token;
  }
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

Activations CpuBackend::Buffer::view(int columns, int first) const {
  const int64_t value = int64_t{first} * columns, block = int64_t{first} * (columns / block_values);
  return {values.data() + value, quants.data() + value, scales.data() + block, sums.data() + block, totals.data() + block, columns};
}

void CpuBackend::Buffer::copy_row(int to, const Buffer& from, int token, int columns, bool quantized) {
  std::memcpy(&values[int64_t{to} * columns], &from.values[int64_t{token} * columns], sizeof(float) * columns);
  if (!quantized) return;
  const int64_t blocks = columns / block_values, source = token * blocks, target = to * blocks;
  std::memcpy(&quants[int64_t{to} * columns], &from.quants[int64_t{token} * columns], columns);
  std::memcpy(&scales[target], &from.scales[source], sizeof(float) * blocks);
  std::memcpy(&sums[target], &from.sums[source], sizeof(float) * blocks);
  std::memcpy(&totals[target], &from.totals[source], sizeof(int32_t) * blocks);
}

}  // namespace millrace
