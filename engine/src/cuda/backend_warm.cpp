// What the backend gets ready while there is nothing to do: graphs, and which of cuBLASLt's ways is the fastest for each product.
#include <algorithm>

#include "backend.h"

namespace millrace {
namespace {

// Products are tried on so many layers in turn, and of prompts those in slices of so many tokens.
constexpr size_t tuned_matrices = 8, tuned_matrices_large = 2;
constexpr int large_tokens = 512;  // so many take so long that L2 plays no part, and a newcomer would wait
constexpr int prompt_tokens[] = {512, 1024, 2048};

}  // namespace

// The graph of one more size that steps may have, the smallest first, and before it the ways of its products; then those of prompts.
bool CudaBackend::warm_up() {
  check(cudaSetDevice(device_), "choosing a device");
  int size = graph_size(1);
  while (size > 0 && size < limits_.samples_max && graphs_.contains(size)) size = graph_size(size + 1);
  if (size > 0 && !graphs_.contains(size)) {
    if (!tune(size)) graph_of(room_of_graph(size));
    return true;
  }
  return std::ranges::any_of(prompt_tokens, [this](int tokens) { return tokens <= limits_.tokens_max && tune(tokens); });
}

// What a step of many tokens multiplies in one operator, and where to; no matrix: none that there is a choice for.
CudaBackend::Product CudaBackend::product_of(const CudaOperator& op) const {
  struct Of {
    const CudaBackend& backend;
    void* sum_of(const DeviceNorm& post_norm) const { return post_norm.weight == nullptr ? backend.x_.get() : backend.added_.get(); }

    Product operator()(const CudaQkv& op) const { return {&op.linear.weight, backend.normed_.get(), BlasLt::Result::f32, backend.qkv_.get(), false}; }
    Product operator()(const CudaProject& op) const { return {&op.linear.weight, backend.attended_.get(), BlasLt::Result::f32, sum_of(op.post_norm), op.post_norm.weight == nullptr}; }
    Product operator()(const CudaGateUp& op) const { return {&op.linear.weight, backend.normed_.get(), BlasLt::Result::bf16, backend.wide_.get(), false}; }
    Product operator()(const CudaDown& op) const { return {&op.linear.weight, backend.gated_.get(), BlasLt::Result::f32, sum_of(op.post_norm), op.post_norm.weight == nullptr}; }
    Product operator()(const CudaEmbed&) const { return {}; }
    Product operator()(const CudaAttend&) const { return {}; }
    Product operator()(const CudaExperts&) const { return {}; }
    Product operator()(const CudaLogits&) const { return {}; }
  };
  const Product product = std::visit(Of{*this}, op);
  return product.w != nullptr && product.w->type != DeviceMatrix::Type::q4 ? product : Product{};
}

// Tunes the products of one kind in steps of so many tokens, the first that is not tuned. What the last step left behind is overwritten.
bool CudaBackend::tune(int tokens) {
  std::vector<DeviceMatrix> alike;
  for (const CudaOperator& op : operators_) {
    const Product product = product_of(op);
    if (product.w == nullptr || is_own(*product.w, tokens)) continue;
    alike.clear();
    for (const CudaOperator& other : operators_) {
      const DeviceMatrix* w = product_of(other).w;
      if (other.index() == op.index() && w != nullptr && w->rows == product.w->rows && w->columns == product.w->columns && alike.size() < (tokens < large_tokens ? tuned_matrices : tuned_matrices_large)) alike.push_back(*w);
    }
    if (blas_->tune(stream_, alike, place_of_input(*product.w, product.x), tokens, product.result, product.y, product.w->rows, product.adds)) return true;
  }
  return false;
}

}  // namespace millrace
