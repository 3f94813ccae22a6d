// The host's half of layers.cu.
#include <algorithm>
#include <mutex>
#include <set>

#include "layers.h"

namespace millrace {
namespace {

constexpr int divided_up(int value, int by) { return (value + by - 1) / by; }

bool is_same_shape(const LayerProduct& a, const LayerProduct& b) {
  const NormInput &x = a.output.norm, &y = b.output.norm;
  return a.w.type == b.w.type && a.w.rows == b.w.rows && a.w.columns == b.w.columns && a.output.kind == b.output.kind && x.squares == y.squares && x.count == y.count && x.n == y.n &&
         x.epsilon == y.epsilon;
}
bool is_same_shape(const Layer& a, const Layer& b) {
  for (int i = 0; i < layer_matrices; i++)
    if (!is_same_shape(a.products[i], b.products[i])) return false;
  return true;
}

LayersPlan::Matrix plan_of(const LayerProduct& product, int grid, int shift) {
  const StreamResult result = stream_result(product.w, 0, product.output);
  const bool is_gate = product.output.kind == MatmulOutput::Kind::gate;
  const int blocks = divided_up(is_gate ? product.w.rows / 2 : product.w.rows, result.block_rows);
  return {.cta_blocks = blocks / grid,
          .longer_ctas = blocks % grid,
          .shift = shift,
          .steps = divided_up(product.w.columns, stream_classes * stream_unit_columns(product.w.type)),
          .boxes = is_gate ? 2 : 1,
          .block_rows = result.block_rows,
          .half_rows = result.half_rows,
          .columns = product.w.columns,
          .norm = product.output.norm};
}

template <typename Value>
DeviceArray<Value> on_device(const std::vector<Value>& values) {
  DeviceArray<Value> array(values.size());
  check(cudaMemcpy(array.get(), values.data(), array.bytes(), cudaMemcpyHostToDevice), "copying what a kernel is told");
  return array;
}

std::mutex claims_mutex;
std::set<int> claimed;  // devices

bool claim(int device) {
  const std::lock_guard lock(claims_mutex);
  return claimed.insert(device).second;
}

}  // namespace

LayersClaim::LayersClaim(int device) : device_(device), is_granted_(claim(device)) {}
LayersClaim::~LayersClaim() {
  if (!is_granted_) return;
  const std::lock_guard lock(claims_mutex);
  claimed.erase(device_);
}

bool can_run_layers(const std::vector<Layer>& layers) {
  if (layers.empty()) return false;
  const AttendTask& attend = layers[0].attention.attend;
  if ((attend.shape.head_dim != 64 && attend.shape.head_dim != 128) || attend.group > layers_group_max) return false;
  for (const Layer& layer : layers) {
    if (!is_same_shape(layer, layers[0])) return false;
    for (const DeviceNorm& norm : {layer.attention.heads.q_norm, layer.attention.heads.k_norm})
      if (norm.weight != nullptr && norm.n != attend.shape.head_dim) return false;
    for (const LayerProduct& product : layer.products)
      if (product.w.type != layers[0].products[0].w.type) return false;
  }
  return true;
}

Layers::Layers(const std::vector<Layer>& layers, int tokens)
    : type_(layers[0].products[0].w.type), element_(layers[0].attention.attend.kv.view.element), head_dim_(layers[0].attention.attend.shape.head_dim) {
  const AttendTask& attend = layers[0].attention.attend;
  LayersPlan& plan = task_.plan;
  int device = 0;
  check(cudaGetDevice(&device), "asking which GPU is used");
  check(cudaDeviceGetAttribute(&plan.grid, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
  plan.layers = static_cast<int>(layers.size());
  plan.tokens = tokens;
  plan.token_tiles = tokens <= 8 ? 1 : 2;
  plan.kv_heads = attend.shape.kv_heads;
  // Who has a block more is another CTA in each matrix.
  for (int i = 0, shift = 0; i < layer_matrices; i++) {
    plan.matrices[i] = plan_of(layers[0].products[i], plan.grid, shift);
    shift = (shift + plan.matrices[i].longer_ctas) % plan.grid;
  }
  plan.ring_at = static_cast<uint32_t>(divided_up(static_cast<int>(layers_exchange_end(plan.token_tiles, attend.group, head_dim_)), stream_swizzle_bytes)) * stream_swizzle_bytes;
  plan.ring_bytes = static_cast<uint32_t>(layers_shared_max) - plan.ring_at;
  plan.shared_bytes = layers_shared_max;

  tagged_ = DeviceArray<uint64_t>(static_cast<size_t>(tokens) * static_cast<size_t>(layers[0].products[0].w.rows));
  std::vector<LayersMaps> maps;
  std::vector<StreamResult> results;
  std::vector<LayerAttention> attentions;
  for (const Layer& layer : layers) {
    attentions.push_back(layer.attention);
    for (int i = 0; i < layer_matrices; i++) {
      const LayerProduct& product = layer.products[i];
      const StreamPlan stream{.token_tiles = plan.token_tiles, .boxes = plan.matrices[i].boxes};
      maps.push_back({stream_maps_of_weights(product.w, stream), stream_map_of_tokens(product.w, product.x, tokens, tokens)});
      results.push_back(stream_result(product.w, tokens, product.output));
      if (i == 0) results.back().tagged = tagged_.get();
    }
  }
  maps_ = on_device(maps);
  results_ = on_device(results);
  attentions_ = on_device(attentions);
  counters_ = DeviceArray<uint32_t>(layers.size() * layer_phases);
  task_.maps = maps_.get();
  task_.results = results_.get();
  task_.attentions = attentions_.get();
  task_.counters = counters_.get();
  task_.tagged = tagged_.get();
}

void Layers::run(cudaStream_t stream, const StepView& step) const {
  LayersTask task = task_;
  task.step = step;
  run_layers(stream, task, type_, element_, head_dim_);
}

}  // namespace millrace
