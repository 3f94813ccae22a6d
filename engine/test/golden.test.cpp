// Every architecture against Hugging Face transformers: in prefill, token by token, and in steps of unequal rows, on each kernel set.
// And against itself with a feature switched off, which must show: a test that cannot tell tells nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "model/architecture.h"
#include "support/golden_model.h"
#include "support/kernel_sets.h"
#include "support/test.h"

using namespace millrace;
using test::GoldenModel;
using test::GoldenRun;

namespace {

// Of the deviation of a model's logits.
constexpr double error_max = 1e-3, mutation_error_min = 20 * error_max;

// Likewise of models as stored; where tokens are routed, one whose scores are close goes to another expert.
constexpr double stored_error_max = 0.03, stored_routed_error_max = 0.6;

const GoldenRun::Count prefill = [](int, size_t) { return 200; };
const GoldenRun::Count one_by_one = [](int, size_t) { return 1; };
const GoldenRun::Count unequal = [](int step, size_t prompt) { return 1 + (step * 11 + static_cast<int>(prompt) * 17) % 40; };

void check_all(const Kernels& kernels) {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, kernels);
    const auto whole = run.evaluate(false, prefill);
    CHECK(test::error_of(golden, whole) <= error_max, name, " in prefill: off by ", test::error_of(golden, whole), " of the deviation");
    const auto decoded = run.evaluate(true, one_by_one), mixed = run.evaluate(true, unequal);
    CHECK(test::error_of(golden, decoded) <= error_max, name, " token by token: off by ", test::error_of(golden, decoded));
    CHECK(test::error_of(golden, mixed) <= error_max, name, " in unequal rows: off by ", test::error_of(golden, mixed));
    CHECK(decoded == whole && mixed == whole, name, ": other bits in other company");
  }
}

const Kernels& best_kernels() { return *kernels_of(KernelSet::automatic, inspect_machine()); }

template <typename Kind>
void each(Model& model, void (*edit)(Kind&)) {
  for (Operator& op : model.operators)
    if (auto* kind = std::get_if<Kind>(&op)) edit(*kind);
}

// RoPE as it was before it was stretched.
void unstretch(Model& model, double base) {
  for (Rope& rope : model.ropes) {
    for (size_t i = 0; i < rope.frequencies.size(); i++) rope.frequencies[i] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / rope.dims()));
    rope.frequencies_long.clear();
  }
}

struct Mutation {
  const char* model;
  const char* feature;
  GoldenRun::Edit edit;
};

const std::vector<Mutation>& mutations() {
  static const std::vector<Mutation> all = {
      {"llama2", "linear stretching of RoPE", [](Model& model) { unstretch(model, 10000); }},
      {"llama3", "Llama 3's stretching of RoPE", [](Model& model) { unstretch(model, 10000); }},
      {"qwen2", "YaRN", [](Model& model) { unstretch(model, 10000); }},
      {"qwen2", "YaRN's attention factor", [](Model& model) { model.ropes[0].attention_factor = 1; }},
      {"qwen2", "biases of q, k and v", [](Model& model) { each<Qkv>(model, [](Qkv& op) { for (Linear& part : op.parts) part.bias = nullptr; }); }},
      {"gpt-oss", "YaRN without rounding", [](Model& model) { unstretch(model, 10000); }},
      {"phi3", "longrope", [](Model& model) { unstretch(model, 10000); }},
      {"phi3", "longrope's frequencies for long contexts", [](Model& model) { model.ropes[0].frequencies_long.clear(); }},
      {"phi3", "longrope's attention factor", [](Model& model) { model.ropes[0].attention_factor = 1; }},
      {"gemma3", "linear stretching of the global RoPE", [](Model& model) { for (float& frequency : model.ropes[0].frequencies) frequency *= 8; }},
      {"gemma3", "a RoPE of its own within windows", [](Model& model) { each<Qkv>(model, [](Qkv& op) { op.rope = 0; }); }},
      {"llama3", "the style of RoPE", [](Model& model) { model.ropes[0].style = Rope::Style::interleaved; }},
      {"mistral", "the window", [](Model& model) { each<Attend>(model, [](Attend& op) { op.window = 0; }); }},
      {"gemma2", "windows in turns", [](Model& model) { each<Attend>(model, [](Attend& op) { op.window = 40; }); }},
      {"gemma3", "windows", [](Model& model) { each<Attend>(model, [](Attend& op) { op.window = 0; }); }},
      {"gpt-oss", "windows", [](Model& model) { each<Attend>(model, [](Attend& op) { op.window = 0; }); }},
      {"gpt-oss", "sinks", [](Model& model) { each<Attend>(model, [](Attend& op) { op.sinks = nullptr; }); }},
      {"gpt-oss", "clamped SwiGLU", [](Model& model) { each<Experts>(model, [](Experts& op) { op.activation = Activation::silu; }); }},
      {"gpt-oss", "the router's bias", [](Model& model) { each<Experts>(model, [](Experts& op) { op.router.bias = nullptr; }); }},
      {"gemma2", "the soft cap of scores", [](Model& model) { each<Attend>(model, [](Attend& op) { op.soft_cap = 0; }); }},
      {"gemma2", "the soft cap of logits", [](Model& model) { each<Logits>(model, [](Logits& op) { op.soft_cap = 0; }); }},
      {"gemma2", "the embedding's scale", [](Model& model) { each<Embed>(model, [](Embed& op) { op.scale = 1; }); }},
      {"gemma2", "the queries' scale", [](Model& model) { each<Qkv>(model, [](Qkv& op) { op.query_scale = 0.25f; }); }},
      {"gemma2", "norms after attention", [](Model& model) { each<Project>(model, [](Project& op) { op.post_norm = {}; }); }},
      {"gemma3", "norms after feed-forward", [](Model& model) { each<Down>(model, [](Down& op) { op.post_norm = {}; }); }},
      {"gemma3", "GELU", [](Model& model) { each<GateUp>(model, [](GateUp& op) { op.activation = Activation::silu; }); }},
      {"qwen3", "norms of q and k", [](Model& model) { each<Qkv>(model, [](Qkv& op) { op.q_norm = op.k_norm = {}; }); }},
      {"olmo2", "norms of q and k over all heads", [](Model& model) { each<Qkv>(model, [](Qkv& op) { op.q_norm = op.k_norm = {}; }); }},
      {"mixtral", "normalized weights of experts", [](Model& model) { each<Experts>(model, [](Experts& op) { op.normalized = false; }); }},
      {"qwen3moe", "weights of experts left as they are", [](Model& model) { each<Experts>(model, [](Experts& op) { op.normalized = true; }); }},
      {"mixtral", "more than one expert", [](Model& model) { each<Experts>(model, [](Experts& op) { op.used = 1; }); }},
      {"falcon-40b", "a norm for each side", [](Model& model) {
         for (size_t i = 0; i + 2 < model.operators.size(); i++)
           if (auto* qkv = std::get_if<Qkv>(&model.operators[i])) std::get<GateUp>(model.operators[i + 2]).norm = qkv->norm;
       }},
      {"falcon-7b", "LayerNorm", [](Model& model) { each<Qkv>(model, [](Qkv& op) { op.norm.kind = Norm::Kind::rms; }); }},
  };
  return all;
}

}  // namespace

TEST("the reference agrees with transformers on every architecture") { check_all(reference_kernels); }
TEST("AVX2 agrees with transformers on every architecture") { check_all(test::kernels_or_skip(KernelSet::avx2)); }
TEST("AVX-512 agrees with transformers on every architecture") { check_all(test::kernels_or_skip(KernelSet::avx512)); }

// Keys and values in 16 bits, and where weights are quantized activations in 8: what that costs these models, which exaggerate it.
TEST("models as they are stored stay near, and have the same bits in any company") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, best_kernels(), {}, Precision::stored);
    const auto whole = run.evaluate(false, prefill);
    const bool routed = std::ranges::any_of(run.model().operators, [](const Operator& op) { return std::holds_alternative<Experts>(op); });
    const double bound = routed ? stored_routed_error_max : stored_error_max;
    CHECK(test::error_of(golden, whole) <= bound, name, ": off by ", test::error_of(golden, whole));
    CHECK(run.evaluate(true, one_by_one) == whole && run.evaluate(true, unequal) == whole, name, ": other bits in other company");
  }
}

TEST("every architecture that we have is held against transformers") {
  std::set<std::string> held;
  for (const std::string& name : test::golden_models()) held.insert(GoldenRun(test::read_golden(name), best_kernels()).model().architecture);
  for (const Architecture* architecture : architectures())
    for (const std::string_view name : architecture->names) CHECK(held.contains(std::string(name)), name, " has no fixture; see scripts/golden-models.py");
}

TEST("a feature that is switched off shows") {
  for (const Mutation& mutation : mutations()) {
    const GoldenModel golden = test::read_golden(mutation.model);
    const double error = test::error_of(golden, GoldenRun(golden, best_kernels(), mutation.edit).evaluate(false, prefill));
    CHECK(error >= mutation_error_min, mutation.model, " without ", mutation.feature, ": off by ", error, " only");
  }
}

// Feed-forward after attention instead of beside it: the operators are the same, in another order.
TEST("Falcon's parallel residual, switched off, shows") {
  for (const char* name : {"falcon-7b", "falcon-40b", "falcon-180b"}) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, best_kernels(), [](Model& model) {
      for (size_t i = 0; i + 1 < model.operators.size(); i++)
        if (std::holds_alternative<GateUp>(model.operators[i])) std::swap(model.operators[i], model.operators[i + 1]), i++;
    });
    const double error = test::error_of(golden, run.evaluate(false, prefill));
    CHECK(error >= mutation_error_min, name, ": off by ", error, " only");
  }
}
