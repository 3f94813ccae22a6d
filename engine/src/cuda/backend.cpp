#include "backend.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <future>

#include "../base/clock.h"
#include "../base/text.h"
#include "../constrain/grammar.h"
#include "driver.h"

namespace millrace {
namespace {

// Steps of so many tokens have a graph; what a graph is captured for is rounded up to one of these.
constexpr int graph_tokens[] = {1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024};
// Attention's partial results of a whole step take no more than this, by chunks long enough.
constexpr int64_t partial_bytes_max = int64_t{1} << 30;
constexpr int chunk_tokens_min = 512, chunk_tokens_max = 1024;
// Steps of few tokens have shorter ones, and so more blocks that read at once: beside the next matrix's weights, which are on their way already, each
// round of reading takes long. Up to 16, since room is rounded up to numbers that are all above or all below.
constexpr int few_tokens = 16, few_chunk_tokens = 128;
// Where one kernel runs all layers, a multiprocessor reads a context ahead, and chunks cost more than they win: they are as long as others.
// Larger steps are whole tiles of cuBLASLt's. In E4M3 it multiplies 256 tokens in less time than 192.
constexpr int own_step_max = 96, step_multiple = 64, step_multiple_fp8 = 128;
constexpr int tile_blocks_a_multiprocessor = 2;
// Of a matrix in four bits, as bfloat16 for cuBLASLt: all of a layer's widest, and a part of an LM head.
constexpr int64_t unpacked_bytes_max = int64_t{256} << 20;

constexpr int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// What a step of so many tokens is rounded up to, a large one to a multiple. The kernel of all layers brings each token's values to every multiprocessor, padding or not.
constexpr int whole_step(int tokens, int multiple) {
  if (tokens <= 4) return static_cast<int>(std::bit_ceil(static_cast<unsigned>(tokens)));
  if (tokens <= few_tokens) return rounded_up(tokens, 4);
  return rounded_up(tokens, tokens <= own_step_max ? 8 : multiple);
}
static_assert(std::ranges::all_of(graph_tokens, [](int size) { return size > own_step_max || whole_step(size, step_multiple) == size; }), "a graph that steps are rounded up beyond is never run");

}  // namespace

CudaBackend::CudaBackend(const ModelFile& file, const Model& model, const KvSlots& slots, Team& team, const CudaLimits& limits, std::vector<std::string>& log)
    : config_(model.config), slots_(slots), limits_(limits) {
  if (config_.hidden > norm_values_max) throw CudaError(text("models of ", config_.hidden, " values a token are not run on a GPU, only of up to ", norm_values_max, "; --kernels cpu runs them"));
  const std::lock_guard lock(default_stream_mutex());
  check(cudaGetDevice(&device_), "choosing a device");
  check(cudaStreamCreate(&stream_), "creating a stream");
  for (Flight& each : flights_) check(cudaEventCreateWithFlags(&each.arrived, cudaEventDisableTiming), "creating an event");
  const uint64_t begun = now_us(), direct = file.direct_bytes();
  // A large library, whose opening takes a while: the weights are read meanwhile.
  std::future<std::unique_ptr<BlasLt>> opening = std::async(std::launch::async, [this] {
    check(cudaSetDevice(device_), "choosing a device");
    return BlasLt::open();
  });
  weights_ = std::make_unique<CudaWeights>(file, config_, team, limits_.as_fp8);
  operators_ = weights_->place(model.operators);
  if (model.ropes.size() > ropes_max) throw CudaError(text("models of ", model.ropes.size(), " RoPEs are not run on a GPU, only of up to ", ropes_max));
  const int tokens = rounded_up(limits_.tokens_max, step_multiple_fp8);
  for (const Rope& rope : model.ropes) {
    const int pairs = rope.dims() / 2;
    turns_.emplace_back(static_cast<size_t>(tokens) * static_cast<size_t>(pairs));
    ropes_.push_back({weights_->vector(rope.frequencies), turns_.back().get(), pairs, rope.attention_factor, rope.style == Rope::Style::halves});
  }
  tell_readers();
  const double rate = static_cast<double>(weights_->read_bytes()) / static_cast<double>(std::max<uint64_t>(now_us() - begun, 1)) / 1000;
  share_norms();
  find_kv_scales();
  work_ = weights_->work();
  blas_ = opening.get();
  reserve();
  log.push_back(text("weights: ", weights_->read_bytes() >> 20, " MiB read at ", std::round(rate * 10) / 10, " GB/s, ", (file.direct_bytes() - direct) >> 20, " MiB of them past the file cache"));
  log.push_back(text("weights: ", weights_->bytes() >> 20, " MiB on the GPU, ", weights_->describe(),
                     limits_.is_deterministic ? "; all steps multiplied by our own kernel"
                     : blas_ == nullptr       ? "; prompts are slow: libcublasLt.so.13 is not to be had"
                                              : text("; steps of over ", own_step_max, " to ", wide_tokens_max, " tokens multiplied by cuBLASLt")));
}

// A norm by the root mean square right behind what writes x is left by that.
void CudaBackend::share_norms() {
  for (size_t i = 0; i + 1 < operators_.size(); i++) {
    auto* qkv = std::get_if<CudaQkv>(&operators_[i + 1]);
    auto* gate_up = std::get_if<CudaGateUp>(&operators_[i + 1]);
    if (qkv == nullptr && gate_up == nullptr) continue;
    const DeviceNorm& norm = qkv != nullptr ? qkv->norm : gate_up->norm;
    if (norm.weight == nullptr || norm.is_layer) continue;
    const DeviceMatrix* reader = qkv != nullptr ? &qkv->linear.weight : &gate_up->linear.weight;
    CudaWriter left{reader};  // an embedding leaves it for any
    CudaReader* next = nullptr;
    if (auto* embed = std::get_if<CudaEmbed>(&operators_[i])) next = &embed->next;
    if (auto* project = std::get_if<CudaProject>(&operators_[i]); project != nullptr && project->post_norm.weight == nullptr) next = &project->next, left.matrix = &project->linear.weight;
    if (auto* down = std::get_if<CudaDown>(&operators_[i]); down != nullptr && down->post_norm.weight == nullptr) next = &down->next, left.matrix = &down->linear.weight;
    if (next == nullptr) continue;
    *next = {reader, norm};
    (qkv != nullptr ? qkv->left : gate_up->left) = left;
  }
}

// Attention's result and a gate's are read by the next projection and the next down, with no norm between.
void CudaBackend::tell_readers() {
  const DeviceMatrix *project = nullptr, *down = nullptr;
  for (auto op = operators_.rbegin(); op != operators_.rend(); op++) {
    if (const auto* reader = std::get_if<CudaProject>(&*op)) project = &reader->linear.weight;
    if (const auto* reader = std::get_if<CudaDown>(&*op)) down = &reader->linear.weight;
    if (auto* attend = std::get_if<CudaAttend>(&*op)) attend->next.matrix = project;
    if (auto* gate_up = std::get_if<CudaGateUp>(&*op)) gate_up->next.matrix = down;
  }
}

CudaBackend::~CudaBackend() {
  (void)cudaStreamSynchronize(stream_);
  for (auto& [tokens, graph] : graphs_)
    for (const cudaGraphExec_t each : {graph.forward, graph.sampling})
      if (each != nullptr) cudaGraphExecDestroy(each);
  for (Flight& each : flights_) cudaEventDestroy(each.arrived);
  cudaStreamDestroy(stream_);
}

// Room for the widest that any operator yields or reads.
void CudaBackend::reserve() {
  const int tokens = rounded_up(limits_.tokens_max, step_multiple_fp8), attention = config_.heads * config_.head_dim, hidden = config_.hidden;
  // A graph of the next size computes that many samples, though some are padding.
  const int samples = std::max(rounded_up(limits_.samples_max, step_multiple), graph_size(limits_.samples_max));
  const auto t = static_cast<size_t>(tokens), s = static_cast<size_t>(samples);
  size_t ffn = 0, wide_bytes = 0;
  for (const CudaOperator& op : operators_) {
    if (const auto* gate_up = std::get_if<CudaGateUp>(&op)) {
      const auto rows = static_cast<size_t>(gate_up->linear.weight.rows);
      ffn = std::max(ffn, static_cast<size_t>(padded_columns(gate_up->ffn)));
      wide_bytes = std::max({wide_bytes, t * rows * 2, size_t{wide_tokens_max} * rows * 4});
    }
    if (const auto* experts = std::get_if<CudaExperts>(&op)) reserve_experts(*experts);
  }
  x_ = DeviceArray<float>(t * static_cast<size_t>(hidden));
  normed_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(padded_columns(hidden)));
  squares_ = DeviceArray<float>(t * static_cast<size_t>(hidden / square_values));
  qkv_ = DeviceArray<float>(t * static_cast<size_t>(attention + 2 * config_.kv_heads * config_.head_dim));
  q_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(attention));
  attended_ = DeviceArray<__nv_bfloat16>(t * static_cast<size_t>(padded_columns(attention)));
  wide_ = DeviceArray<uint8_t>(wide_bytes);
  gated_ = DeviceArray<__nv_bfloat16>(t * ffn);
  if (limits_.as_fp8) {
    quants_ = DeviceArray<uint8_t>(t * static_cast<size_t>(padded_columns(std::max(hidden, attention))));
    gated_quants_ = DeviceArray<uint8_t>(t * ffn);
    quant_scales_ = DeviceArray<float>(t);
    gated_scales_ = DeviceArray<float>(t);
  }
  if (const int64_t bytes = weights_->unpacked_bytes(); bytes > 0) unpacked_ = DeviceArray<__nv_bfloat16>(static_cast<size_t>(std::min(bytes, unpacked_bytes_max)) / 2);
  added_ = DeviceArray<float>(t * static_cast<size_t>(hidden));
  logits_ = DeviceArray<float>(s * static_cast<size_t>(config_.vocabulary));
  adjusted_ = DeviceArray<float>(s * static_cast<size_t>(config_.vocabulary));
  const size_t mask_words = (static_cast<size_t>(config_.vocabulary) + 31) / 32;
  masks_ = DeviceArray<uint32_t>(s * mask_words);
  for (Flight& each : flights_) each.masks = PinnedArray<uint32_t>(s * mask_words);
  history_ = DeviceArray<int32_t>(static_cast<size_t>(limits_.slots) * static_cast<size_t>(limits_.context_tokens));
  last_tokens_ = DeviceArray<int32_t>(static_cast<size_t>(limits_.slots));
  sample_scratch_ = DeviceArray<uint8_t>(sample_scratch_bytes(static_cast<int>(s), config_.vocabulary));
  results_ = DeviceArray<SampleResult>(s);
  for (Flight& each : flights_) each.results = PinnedArray<SampleResult>(s);

  StepShape shape{.chunk_tokens = chunk_tokens_min};
  if (!limits_.is_deterministic) {
    shape.few_tokens = few_tokens;
    if (can_run_layers(list_layers({.tokens_max = 1}))) layers_claim_ = std::make_unique<LayersClaim>(device_);
    shape.few_chunk_tokens = runs_layers() ? chunk_tokens_min : few_chunk_tokens;
    const AttendShape attend{config_.heads, config_.kv_heads, config_.head_dim};
    shape.tile_tokens = attend_tile_tokens(attend);
    shape.tile_blocks = attend_tile_blocks(attend);
    check(cudaDeviceGetAttribute(&shape.blocks, cudaDevAttrMultiProcessorCount, device_), "counting multiprocessors");
    if (!attends_wide(attend, slots_.plan().groups[0].element)) shape.blocks *= tile_blocks_a_multiprocessor;
  }
  const int64_t partial_bytes = int64_t{config_.heads} * (2 + config_.head_dim) * 4;
  const int64_t single_tokens = limits_.is_deterministic ? tokens : limits_.samples_max;
  const auto chunks_of = [&](int chunk) { return (limits_.context_tokens + chunk - 1) / chunk; };
  const auto pieces_of = [&](int chunk) { return single_tokens * chunks_of(chunk); };
  while (shape.chunk_tokens < chunk_tokens_max && pieces_of(shape.chunk_tokens) * partial_bytes > partial_bytes_max) shape.chunk_tokens *= 2;
  const int64_t few_pieces = shape.few_tokens == 0 ? 0 : std::min<int64_t>(single_tokens, shape.few_tokens) * chunks_of(shape.few_chunk_tokens);
  const auto pieces = static_cast<int>(std::max(pieces_of(shape.chunk_tokens), few_pieces));
  partials_ = DeviceArray<float>(static_cast<size_t>((pieces + shape.tile_partials_max()) * partial_bytes / 4));
  arrived_ = DeviceArray<int>(t * static_cast<size_t>(config_.kv_heads));
  step_ = std::make_unique<StepBuffer>(StepRoom{tokens, pieces, tokens + shape.divided_tiles_max(), std::max(tokens, static_cast<int>(s))}, shape, flights_max);
}

void CudaBackend::reserve_experts(const CudaExperts& op) {
  const auto t = static_cast<size_t>(rounded_up(limits_.tokens_max, step_multiple_fp8)), entries = t * static_cast<size_t>(op.used);
  scores_ = DeviceArray<float>(t * static_cast<size_t>(op.experts));
  expert_weights_ = DeviceArray<float>(entries);
  expert_wide_ = DeviceArray<float>(entries * static_cast<size_t>(op.ffn) * (op.is_gated ? 2 : 1));
  expert_added_ = DeviceArray<float>(entries * static_cast<size_t>(config_.hidden));
  expert_gated_ = DeviceArray<__nv_bfloat16>(entries * static_cast<size_t>(padded_columns(op.ffn)));
  for (auto* each : {&chosen_, &entries_, &entry_tokens_}) *each = DeviceArray<int32_t>(entries);
  first_entries_ = DeviceArray<int32_t>(static_cast<size_t>(op.experts) + 1);
}

void CudaBackend::begin(const Plan& plan) {
  check(cudaSetDevice(device_), "choosing a device");  // the thread may be another one than that which loaded
  upload_history(plan);
  const StepRoom needed = step_->room_for(plan);
  const bool decodes = needed.tiles == 0 && needed.tokens == static_cast<int>(plan.rows.size()) && plan.logits == nullptr && needed.tokens <= std::end(graph_tokens)[-1];
  if (decodes)
    run_graph(plan, needed);
  else
    run_eagerly(plan, needed);
  Flight& flight = flights_[begun_ % flights_max];
  flight.logprobs.clear();
  for (const auto& [sampler, pending] : plan.samplers) flight.logprobs.push_back(std::min(sampler->options().logprobs, config_.vocabulary));
  if (!plan.samplers.empty())
    check(cudaMemcpyAsync(flight.results.get(), results_.get(), plan.samplers.size() * sizeof(SampleResult), cudaMemcpyDeviceToHost, stream_), "reading a step's results");
  check(cudaEventRecord(flight.arrived, stream_), "computing a step");
  begun_++;
}

std::vector<SampledToken> CudaBackend::finish() {
  const Flight& flight = flights_[finished_++ % flights_max];
  await(flight.arrived);
  std::vector<SampledToken> sampled(flight.logprobs.size());
  for (size_t s = 0; s < sampled.size(); s++) {
    const SampleResult& result = flight.results[s];
    sampled[s].token = result.token;
    if (flight.logprobs[s] < 0) continue;
    sampled[s].logprobs.push_back({result.token, result.logprobs[0]});
    for (int i = 0; i < flight.logprobs[s]; i++) sampled[s].logprobs.push_back({result.ids[i], result.logprobs[1 + i]});
  }
  return sampled;
}

// Spins: a thread that sleeps wakes up tens of microseconds late.
void CudaBackend::await(cudaEvent_t event) {
  cudaError_t result = cudaErrorNotReady;
  while (result == cudaErrorNotReady) result = cudaEventQuery(event);
  check(result, "computing a step");
}

// What a slot's penalties count, where it was not this slot that computed it.
void CudaBackend::upload_history(const Plan& plan) {
  for (const Plan::Begun& begun : plan.begun)
    check(cudaMemcpyAsync(history_.get() + int64_t{begun.slot} * limits_.context_tokens, begun.tokens.data(), begun.tokens.size() * sizeof(int32_t), cudaMemcpyHostToDevice, stream_),
          "copying a sequence's tokens");
}

int CudaBackend::whole_step(int tokens) const { return millrace::whole_step(tokens, limits_.as_fp8 ? step_multiple_fp8 : step_multiple); }

// The graph that serves a step of so many; 0: none does.
int CudaBackend::graph_size(int tokens) const {
  const int* found = std::ranges::find_if(graph_tokens, [&](int size) { return size >= tokens && whole_step(size) == size; });
  return found == std::end(graph_tokens) ? 0 : *found;
}

void CudaBackend::run_eagerly(const Plan& plan, const StepRoom& needed) {
  StepRoom room = needed;
  room.tokens = whole_step(needed.tokens);
  step_->write(plan, room, stream_);
  const StepView step = step_->view(room);
  forward(step);
  if (plan.logits != nullptr) return read_logits(plan, room);
  if (room.samples == 0) return;
  run_operator(step, std::get<CudaLogits>(operators_.back()));
  upload_masks(plan);
  sample_tokens(step);
}

void CudaBackend::run_graph(const Plan& plan, const StepRoom& needed) {
  const StepRoom room = room_of_graph(graph_size(needed.tokens));
  Graph& graph = graph_of(room);
  step_->write(plan, room, stream_);
  check(cudaGraphLaunch(graph.forward, stream_), "launching a step");
  upload_masks(plan);
  if (!plan.samplers.empty()) check(cudaGraphLaunch(graph.sampling, stream_), "launching a step's sampling");
}

StepRoom CudaBackend::room_of_graph(int tokens) const {
  StepRoom room{.tokens = tokens, .samples = tokens};
  const int chunk = step_->view(room).chunk_tokens;
  room.pieces = std::min(tokens * ((limits_.context_tokens + chunk - 1) / chunk), step_->most().pieces);
  return room;
}

CudaBackend::Graph& CudaBackend::graph_of(const StepRoom& room) {
  Graph& graph = graphs_[room.tokens];
  const StepView step = step_->view(room);
  static_cast<void>(layers_of(step));  // while nothing is captured, memory can be had
  if (graph.forward == nullptr)
    graph.forward = capture([&] {
      forward(step);
      run_operator(step, std::get<CudaLogits>(operators_.back()));
    });
  if (graph.sampling == nullptr) graph.sampling = capture([&] { sample_tokens(step); });
  return graph;
}

template <typename Work>
cudaGraphExec_t CudaBackend::capture(const Work& work) {
  const std::lock_guard lock(default_stream_mutex());
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing a step");
  try {
    work();
  } catch (...) {
    (void)cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "capturing a step");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t result = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(result, "making a step's graph");
  return executable;
}

// Awaits the masks, which are computed while the forward runs.
void CudaBackend::upload_masks(const Plan& plan) {
  size_t count = 0;
  const PinnedArray<uint32_t>& masks = flights_[begun_ % flights_max].masks;
  const size_t words = (static_cast<size_t>(config_.vocabulary) + 31) / 32;
  for (const auto& [sampler, pending] : plan.samplers) {
    if (sampler->mask() == nullptr) continue;
    sampler->mask()->wait();
    std::memcpy(masks.get() + count++ * words, sampler->mask()->bits(), words * sizeof(uint32_t));
  }
  if (count > 0)
    check(cudaMemcpyAsync(masks_.get(), masks.get(), count * words * sizeof(uint32_t), cudaMemcpyHostToDevice, stream_), "copying masks");
}

// Logits of however many positions, as many at a time as there is room for.
void CudaBackend::read_logits(const Plan& plan, const StepRoom& room) {
  const std::vector<StepSample> all = step_->samples();
  const auto most = static_cast<size_t>(limits_.samples_max);
  for (size_t first = 0; first < all.size(); first += most) {
    const size_t count = std::min(most, all.size() - first);
    step_->write_samples({all.begin() + static_cast<std::ptrdiff_t>(first), all.begin() + static_cast<std::ptrdiff_t>(first + count)}, room, stream_);
    StepView step = step_->view(room);
    step.samples_max = static_cast<int>(count);
    run_operator(step, std::get<CudaLogits>(operators_.back()));
    const auto vocabulary = static_cast<size_t>(config_.vocabulary);
    check(cudaMemcpyAsync(plan.logits + first * vocabulary, logits_.get(), count * vocabulary * sizeof(float), cudaMemcpyDeviceToHost, stream_), "reading logits");
    check(cudaStreamSynchronize(stream_), "computing logits");
  }
}

uint64_t cuda_backend_bytes(const Model& model, const CudaLimits& limits) {
  // Weights in bfloat16 or, of layers, in four bits, an LM head in both, as where it is the embedding too; and about as much as reserve() takes of the rest; what is left over goes unused.
  const ModelConfig& config = model.config;
  const auto tokens = static_cast<uint64_t>(limits.tokens_max), samples = static_cast<uint64_t>(limits.samples_max);
  uint64_t widest = 0, routed = 0, saved = 0, head = 0;
  for (const Operator& op : model.operators) {
    if (const std::vector<Linear> parts = layer_matrix(op); !limits.as_fp8 && are_q4(parts))
      for (const Linear& part : parts)
        saved += static_cast<uint64_t>(part.weight->rows() * (part.weight->columns() * 2 - q4_row_bytes(static_cast<int>(part.weight->columns()))));
    if (const auto* logits = std::get_if<Logits>(&op); logits != nullptr && !limits.as_fp8 && are_q4({logits->output}))
      head = static_cast<uint64_t>(logits->output.weight->rows() * q4_row_bytes(static_cast<int>(logits->output.weight->columns())));
    if (const auto* gate_up = std::get_if<GateUp>(&op)) widest = std::max(widest, static_cast<uint64_t>(gate_up->up.weight->rows()));
    if (const auto* experts = std::get_if<Experts>(&op)) routed = static_cast<uint64_t>(experts->used) * static_cast<uint64_t>(10 * experts->experts[0].up.weight->rows() + 4 * config.hidden);
  }
  const uint64_t a_token = static_cast<uint64_t>(config.hidden) * 12 + static_cast<uint64_t>((config.heads + config.kv_heads) * config.head_dim) * 12 + widest * 8 + routed;
  return model.parameters * 2 - saved + head + static_cast<uint64_t>(saved + head > 0 ? unpacked_bytes_max : 0) + tokens * a_token + samples * static_cast<uint64_t>(config.vocabulary) * 20 +
         static_cast<uint64_t>(limits.slots) * static_cast<uint64_t>(limits.context_tokens) * 4 + static_cast<uint64_t>(partial_bytes_max) + (uint64_t{1} << 30);
}

std::unique_ptr<Backend> make_cuda_backend(const ModelFile& file, const Model& model, const KvSlots& slots, Team& team, const CudaLimits& limits,
                                           std::vector<std::string>& log, MatrixWork& work) {
  auto backend = std::make_unique<CudaBackend>(file, model, slots, team, limits, log);
  work = backend->work();
  return backend;
}

}  // namespace millrace
