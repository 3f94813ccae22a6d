// The operators as the backend launches them, into its stream or into a graph.
#include <algorithm>

#include "backend.h"
#include "driver.h"

namespace millrace {
namespace {

constexpr size_t layer_operators = 5;

// The same of a step's tokens from `first` on.
NormInput from(NormInput norm, int first) {
  if (norm.squares != nullptr) norm.squares += int64_t{first} * norm.count;
  return norm;
}
NormOutput from(NormOutput next, int rows, int first) {
  if (next.weight == nullptr) return next;
  next.x += first * next.stride;
  next.squares += int64_t{first} * (rows / square_values);
  return next;
}

}  // namespace

void CudaBackend::forward(const StepView& step) {
  const Layers* layers = layers_of(step);
  for (const CudaOperator& op : operators_)
    if (!std::holds_alternative<CudaLogits>(op) && (layers == nullptr || std::holds_alternative<CudaEmbed>(op))) std::visit([&](const auto& each) { run_operator(step, each); }, op);
  if (layers != nullptr) layers->run(stream_, step);
}

// Of a step of few tokens that decode: all layers in one kernel, where it can be; else none.
const Layers* CudaBackend::layers_of(const StepView& step) {
  const int tokens = step.tokens_max;
  if (!runs_layers() || step.tiles_max > 0 || step.pieces_max == 0 || tokens > layers_tokens_max) return nullptr;
  std::unique_ptr<Layers>& layers = layers_[tokens];
  if (layers == nullptr) {
    const std::lock_guard lock(default_stream_mutex());
    layers = std::make_unique<Layers>(list_layers(step), tokens);
  }
  return layers.get();
}

// What the operators do, as layers; none where they are others.
std::vector<Layer> CudaBackend::list_layers(const StepView& step) const {
  std::vector<Layer> layers;
  const bool ends = !operators_.empty() && std::holds_alternative<CudaEmbed>(operators_.front()) && std::holds_alternative<CudaLogits>(operators_.back());
  if (!ends || operators_.size() % layer_operators != 2) return {};
  for (size_t i = 1; i + 1 < operators_.size(); i += layer_operators) {
    const auto* qkv = std::get_if<CudaQkv>(&operators_[i]);
    const auto* attend = std::get_if<CudaAttend>(&operators_[i + 1]);
    const auto* project = std::get_if<CudaProject>(&operators_[i + 2]);
    const auto* gate_up = std::get_if<CudaGateUp>(&operators_[i + 3]);
    const auto* down = std::get_if<CudaDown>(&operators_[i + 4]);
    if (qkv == nullptr || attend == nullptr || project == nullptr || gate_up == nullptr || down == nullptr) return {};
    if (!gate_up->is_gated || qkv->left.matrix == nullptr || gate_up->left.matrix == nullptr || project->post_norm.weight != nullptr || down->post_norm.weight != nullptr) return {};
    Layer layer;
    layer.products[0] = {qkv->linear.weight, normed_.get(), store_output(qkv->linear, qkv_.get(), false)};
    layer.products[0].output.norm = left_norm(qkv->norm);
    layer.products[1] = {project->linear.weight, attended_.get(), store_output(project->linear, x_.get(), true)};
    layer.products[1].output.next = left_for(step, project->linear.weight, project->next);
    layer.products[2] = {gate_up->linear.weight, normed_.get(), gate_output(step, *gate_up)};
    layer.products[2].output.norm = left_norm(gate_up->norm);
    layer.products[3] = {down->linear.weight, gated_.get(), store_output(down->linear, x_.get(), true)};
    layer.products[3].output.next = left_for(step, down->linear.weight, down->next);
    layer.attention = {heads_task(*qkv), attend_task(step, *attend)};
    layers.push_back(layer);
  }
  return layers;
}

MatmulOutput CudaBackend::store_output(const DeviceLinear& linear, float* y, bool adds) {
  return {.kind = adds ? MatmulOutput::Kind::add : MatmulOutput::Kind::store, .y = y, .stride = linear.weight.rows, .bias = linear.bias};
}
MatmulOutput CudaBackend::gate_output(const StepView& step, const CudaGateUp& op) const {
  return {.kind = MatmulOutput::Kind::gate, .y = gated_.get(), .stride = padded_columns(op.ffn), .bias = op.linear.bias, .activation = op.activation,
          .as = activations(*op.next.matrix, step.tokens_max)};
}

void CudaBackend::run_operator(const StepView& step, const CudaEmbed& op) {
  EmbedTask task{.embedding = static_cast<const __nv_bfloat16*>(op.weight.values), .hidden = config_.hidden, .columns = op.weight.columns, .scale = op.scale};
  for (const DeviceRope& rope : ropes_) task.ropes.rope[task.ropes.count++] = rope;
  task.last_tokens = last_tokens_.get();
  task.history = history_.get();
  task.history_stride = limits_.context_tokens;
  task.x = x_.get();
  task.next = op.next.matrix == nullptr ? NormOutput{} : left_for(step, *op.next.matrix, op.next);
  embed(stream_, step, task);
}

// What a norm's reader multiplies: left by who wrote x, where our own kernels multiply both, or else by a kernel of its own.
NormInput CudaBackend::normed_input(const StepView& step, const DeviceNorm& norm, const DeviceMatrix& reader, const CudaWriter& left) {
  const int tokens = step.tokens_max;
  if (left.matrix != nullptr && is_own(*left.matrix, tokens) && is_own(reader, tokens)) return left_norm(norm);
  if (const Quantized to = quantized_for(reader, tokens); to.values != nullptr) {
    normalize(stream_, step, norm, x_.get(), config_.hidden, to);
    return {};
  }
  normalize(stream_, step, Rows::tokens, norm, x_.get(), config_.hidden, normed_.get(), activations(reader, tokens));
  return {};
}

NormOutput CudaBackend::left_for(const StepView& step, const DeviceMatrix& writer, const CudaReader& next) const {
  if (next.norm.weight == nullptr || !is_own(writer, step.tokens_max) || !is_own(*next.matrix, step.tokens_max)) return {};
  return {next.norm.weight, normed_.get(), padded_columns(config_.hidden), squares_.get(), activations(*next.matrix, step.tokens_max)};
}

KvView CudaBackend::kv_of(int layer) const {
  const KvPlan::Place place = slots_.plan().layers[static_cast<size_t>(layer)];
  const KvLayout& layout = slots_.plan().groups[static_cast<size_t>(place.group)];
  KvView kv;
  kv.base = slots_.base(0, place.group);
  kv.slot_bytes = slots_.base(1, 0) - slots_.base(0, 0);
  kv.page_bytes = layout.page_bytes;
  kv.key_offset = layout.offset(place.layer, false, 0);
  kv.value_offset = layout.offset(place.layer, true, 0);
  kv.head_bytes = layout.head_bytes();
  kv.page_tokens = layout.page_tokens;
  kv.element = layout.element;
  if (kv_scales_.count() > 0) kv.key_scales = kv_scales_.get() + 2 * layer * config_.kv_heads, kv.value_scales = kv.key_scales + config_.kv_heads;
  return kv;
}

// Of keys and values in E4M3.
void CudaBackend::find_kv_scales() {
  if (slots_.plan().groups[0].element != KvElement::e4m3) return;
  kv_scales_ = DeviceArray<float>(2 * static_cast<size_t>(config_.layers) * static_cast<size_t>(config_.kv_heads));
  for (const CudaOperator& each : operators_) {
    const auto* op = std::get_if<CudaQkv>(&each);
    if (op == nullptr) continue;
    const DeviceRope& rope = ropes_[static_cast<size_t>(op->rope)];
    KvScalesTask task{.w = op->linear.weight, .bias = op->linear.bias, .norm = op->norm, .k_norm = op->k_norm, .columns = config_.hidden};
    task.heads = config_.heads;
    task.kv_heads = config_.kv_heads;
    task.head_dim = config_.head_dim;
    task.turn_factor = rope.pairs > 0 ? rope.factor : 0;
    task.key_scales = kv_scales_.get() + 2 * op->layer * config_.kv_heads;
    task.value_scales = task.key_scales + config_.kv_heads;
    scale_kv(stream_, task);
  }
}

void CudaBackend::run_operator(const StepView& step, const CudaQkv& op) {
  const NormInput norm = normed_input(step, op.norm, op.linear.weight, op.left);
  multiply(op.linear, normed_.get(), step.tokens_max, qkv_.get(), false, norm);
  finish_heads(stream_, step, heads_task(op));
}

HeadsTask CudaBackend::heads_task(const CudaQkv& op) const {
  HeadsTask task{.qkv = qkv_.get(), .heads = config_.heads, .kv_heads = config_.kv_heads, .head_dim = config_.head_dim, .q_norm = op.q_norm, .k_norm = op.k_norm};
  task.rope = ropes_[static_cast<size_t>(op.rope)];
  task.query_scale = op.query_scale;
  task.kv = kv_of(op.layer);
  task.q = q_.get();
  return task;
}

// Of any step.
AttendTask CudaBackend::attend_task(const StepView& step, const CudaAttend& op) const {
  const int64_t width = int64_t{config_.heads} * config_.head_dim;
  return {.shape = op.shape, .kv = runs_of(kv_of(op.layer), config_.head_dim), .q = q_.get(), .q_stride = width, .out = attended_.get(), .out_stride = padded_columns(static_cast<int>(width)),
          .as = activations(*op.next.matrix, step.tokens_max), .scratch = {partials_.get(), arrived_.get()}, .group = config_.heads / config_.kv_heads, .blocks = 1};
}

void CudaBackend::run_operator(const StepView& step, const CudaAttend& op) {
  const AttendTask task = attend_task(step, op);
  attend_tiles(stream_, step, task.shape, task.kv.view, task.q, task.q_stride, task.scratch, task.out, task.out_stride, task.as);
  attend_pieces(stream_, step, task.shape, task.kv.view, task.q, task.q_stride, task.scratch, task.out, task.out_stride, task.as);
  merge_tiles(stream_, step, task.shape, task.scratch, task.out, task.out_stride, task.as);
}

void CudaBackend::run_operator(const StepView& step, const CudaProject& op) { add_to_stream(step, op.linear, op.post_norm, op.next, attended_.get()); }
void CudaBackend::run_operator(const StepView& step, const CudaDown& op) { add_to_stream(step, op.linear, op.post_norm, op.next, gated_.get()); }

void CudaBackend::run_operator(const StepView& step, const CudaGateUp& op) {
  const NormInput norm = normed_input(step, op.norm, op.linear.weight, op.left);
  const int tokens = step.tokens_max, stride = padded_columns(op.ffn);
  GateTask task{.wide = wide_.get(), .bias = op.linear.bias, .activation = op.activation, .is_gated = op.is_gated, .ffn = op.ffn, .out = gated_.get()};
  task.as = activations(*op.next.matrix, tokens);
  if (!is_own(op.linear.weight, tokens)) {
    multiply_many(op.linear.weight, normed_.get(), tokens, BlasLt::Result::bf16, wide_.get(), false);
    task.is_float32 = false;
    if (quantized_for(*op.next.matrix, tokens).values != nullptr) task.quantized = {gated_quants_.get(), gated_scales_.get()};
    return gate(stream_, tokens, task);
  }
  if (op.is_gated) {
    MatmulOutput output = gate_output(step, op);
    output.norm = norm;
    return multiply_own(op.linear.weight, normed_.get(), tokens, output);
  }
  task.bias = nullptr;  // the matrix's kernel adds it
  MatmulOutput output{.bias = op.linear.bias, .norm = norm};
  output.y = wide_.get();
  output.stride = op.linear.weight.rows;
  for (int first = 0; first < tokens; first += wide_tokens_max) {
    const int count = std::min(wide_tokens_max, tokens - first);
    output.norm = from(norm, first);
    multiply_own(op.linear.weight, normed_.get() + int64_t{first} * op.linear.weight.columns, count, output);
    task.out = gated_.get() + int64_t{first} * stride;
    gate(stream_, count, task);
  }
}

void CudaBackend::run_operator(const StepView& step, const CudaExperts& op) {
  normalize(stream_, step, Rows::tokens, op.norm, x_.get(), config_.hidden, normed_.get());
  multiply(op.router, normed_.get(), step.tokens_max, scores_.get(), false);
  ExpertsTask task{.experts = op.experts, .used = op.used, .hidden = config_.hidden, .ffn = op.ffn, .is_normalized = op.is_normalized, .is_gated = op.is_gated,
                   .activation = op.activation};
  task.scores = scores_.get();
  task.wide = op.wide.weight;
  task.wide_bias = op.wide.bias;
  task.down = op.down.weight;
  task.down_bias = op.down.bias;
  task.input = normed_.get();
  task.chosen = chosen_.get();
  task.weights = expert_weights_.get();
  task.entries = entries_.get();
  task.entry_tokens = entry_tokens_.get();
  task.first = first_entries_.get();
  task.wide_values = expert_wide_.get();
  task.gated = expert_gated_.get();
  task.added = expert_added_.get();
  run_experts(stream_, step, task, x_.get());
}

void CudaBackend::run_operator(const StepView& step, const CudaLogits& op) {
  if (step.samples_max == 0) return;
  const DeviceMatrix& w = op.linear.weight;
  normalize(stream_, step, Rows::samples, op.norm, x_.get(), config_.hidden, normed_.get(), activations(w, step.samples_max));
  const int samples = is_own(w, step.samples_max) ? step.samples_max : (step.samples_max + 63) / 64 * 64;
  multiply(op.linear, normed_.get(), samples, logits_.get(), false);
  if (op.soft_cap != 0) finish_rows(stream_, samples, nullptr, op.soft_cap, logits_.get(), config_.vocabulary, config_.vocabulary);
}

void CudaBackend::sample_tokens(const StepView& step) {
  SampleTask task{.logits = logits_.get(), .adjusted = adjusted_.get(), .vocabulary = config_.vocabulary, .history = history_.get(), .history_stride = limits_.context_tokens};
  task.masks = masks_.get();
  task.mask_words = (config_.vocabulary + 31) / 32;
  task.last_tokens = last_tokens_.get();
  task.results = results_.get();
  task.scratch = sample_scratch_.get();
  sample(stream_, step, task);
}

// Matrices of E4M3 are multiplied by tokens of that type where there are many of them.
Quantized CudaBackend::quantized_for(const DeviceMatrix& w, int tokens) const {
  if (w.type != DeviceMatrix::Type::fp8 || is_own(w, tokens)) return {};
  return {quants_.get(), quant_scales_.get()};
}

// Norms and gates have left their values in that type; attention has not.
BlasLt::Input CudaBackend::input_of(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens) {
  if (const Quantized quantized = quantized_for(w, tokens); quantized.values != nullptr && x == attended_.get()) quantize_rows(stream_, x, tokens, w.columns, quantized.values, quantized.scales);
  return place_of_input(w, x);
}
// Where those lie.
BlasLt::Input CudaBackend::place_of_input(const DeviceMatrix& w, const __nv_bfloat16* x) const {
  if (w.type != DeviceMatrix::Type::fp8) return {x, nullptr};
  if (x == gated_.get()) return {gated_quants_.get(), gated_scales_.get()};
  return {quants_.get(), quant_scales_.get()};
}

// y = w . x by cuBLASLt. Four bits become bfloat16 first, by so many rows that what each part yields begins at a multiple of 256 bytes.
void CudaBackend::multiply_many(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, BlasLt::Result result, void* y, bool adds) {
  if (w.type != DeviceMatrix::Type::q4) return blas_->multiply(stream_, w, input_of(w, x, tokens), tokens, result, y, w.rows, adds);
  const int room = static_cast<int>(unpacked_.count() / static_cast<size_t>(w.columns)), value_bytes = result == BlasLt::Result::f32 ? 4 : 2;
  const int rows_a_part = room >= w.rows ? w.rows : std::max(room / 128 * 128, q4_rows);
  for (int first = 0; first < w.rows; first += rows_a_part) {
    const DeviceMatrix part{.values = unpacked_.get(), .rows = std::min(rows_a_part, w.rows - first), .columns = w.columns};
    unpack_q4(stream_, w, first, part.rows, unpacked_.get());
    blas_->multiply(stream_, part, {x, nullptr}, tokens, result, static_cast<uint8_t*>(y) + int64_t{first} * value_bytes, w.rows, adds);
  }
}

void CudaBackend::multiply(const DeviceLinear& linear, const __nv_bfloat16* x, int tokens, float* y, bool adds, const NormInput& norm, const NormOutput& next) {
  const DeviceMatrix& w = linear.weight;
  if (!is_own(w, tokens)) {
    multiply_many(w, x, tokens, BlasLt::Result::f32, y, adds);
    if (linear.bias != nullptr) finish_rows(stream_, tokens, linear.bias, 0, y, w.rows, w.rows);
    return;
  }
  MatmulOutput output = store_output(linear, y, adds);
  output.norm = norm;
  output.next = next;
  multiply_own(w, x, tokens, output);
}

// By the kernel for so many tokens, as many at a time as it takes.
void CudaBackend::multiply_own(const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output) {
  const bool is_wide = tokens >= wide_tokens_min && w.type != DeviceMatrix::Type::q4 && !limits_.is_deterministic;
  const int most = is_wide ? wide_tokens_max : stream_tokens_max, value_bytes = output.kind == MatmulOutput::Kind::gate ? 2 : 4;
  for (int first = 0; first < tokens; first += most) {
    MatmulOutput part = output;
    part.y = static_cast<uint8_t*>(output.y) + first * output.stride * value_bytes;
    part.norm = from(output.norm, first);
    part.next = from(output.next, w.rows, first);
    const __nv_bfloat16* its = x + int64_t{first} * w.columns;
    const int count = std::min(most, tokens - first);
    is_wide ? matmul_wide(stream_, w, its, count, part) : matmul_stream(stream_, w, its, count, part);
  }
}

// x += post_norm(linear . input).
void CudaBackend::add_to_stream(const StepView& step, const DeviceLinear& linear, const DeviceNorm& post_norm, const CudaReader& next, const __nv_bfloat16* x) {
  if (post_norm.weight == nullptr) return multiply(linear, x, step.tokens_max, x_.get(), true, {}, left_for(step, linear.weight, next));
  multiply(linear, x, step.tokens_max, added_.get(), false);
  add_normed(stream_, step, post_norm, added_.get(), config_.hidden, x_.get());
}

}  // namespace millrace
