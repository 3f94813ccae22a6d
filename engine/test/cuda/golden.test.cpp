// Every architecture on the GPU against Hugging Face transformers in float32: in prefill, token by token, and in steps of unequal rows; and
// where the same bits are asked for in any company, those.
#include "cuda/cuda.h"

#include <algorithm>
#include <cmath>

#include "support/golden_model.h"
#include "support/test.h"

using namespace millrace;
using test::GoldenModel;
using test::GoldenRun;

namespace {

// Of the deviation of a model's logits, for the worst of them. Keys, values and what matrices read have 8 bits of mantissa, so that each rounds by up to
// 2^-9; on a CPU float16 keys and values alone, which round by 2^-12, bring these models' logits off by up to 0.015. Where tokens are routed, one whose scores are close goes to another expert.
constexpr double error_max = 0.25, routed_error_max = 0.6;
// Between two ways to compute the same.
constexpr double difference_max = 0.25, routed_difference_max = 0.6;

const GoldenRun::Count prefill = [](int, size_t) { return 200; };
const GoldenRun::Count one_by_one = [](int, size_t) { return 1; };
const GoldenRun::Count unequal = [](int step, size_t prompt) { return 1 + (step * 11 + static_cast<int>(prompt) * 17) % 40; };

test::GoldenMachine on_gpu(bool is_deterministic) {
  if (const auto gpu = inspect_cuda(); !gpu.ok()) throw test::Skipped{gpu.message()};
  return {KvElement::bfloat16, cuda_granule_bytes, reserve_cuda_kv_memory,
          [=](const Model& model, const KvSlots& slots, Team& team, int slot_count, int context, int tokens_max) {
            std::vector<std::string> log;
            MatrixWork work;
            const CudaLimits limits{.tokens_max = tokens_max, .slots = slot_count, .samples_max = slot_count, .context_tokens = context, .is_deterministic = is_deterministic};
            return make_cuda_backend(model, slots, team, limits, log, work);
          }};
}

// The largest difference of any logits, as a share of the fixture's deviation.
double difference_of(const GoldenModel& golden, const std::vector<std::vector<float>>& one, const std::vector<std::vector<float>>& other) {
  double largest = 0;
  for (size_t p = 0; p < one.size(); p++)
    for (size_t i = 0; i < one[p].size(); i++) largest = std::max(largest, std::fabs(double{one[p][i]} - other[p][i]));
  return largest / golden.deviation;
}

bool is_routed(const Model& model) {
  return std::ranges::any_of(model.operators, [](const Operator& op) { return std::holds_alternative<Experts>(op); });
}

}  // namespace

TEST("every architecture agrees with transformers on the GPU, however its tokens come") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, on_gpu(false));
    const double bound = is_routed(run.model()) ? routed_error_max : error_max, between = is_routed(run.model()) ? routed_difference_max : difference_max;
    const auto whole = run.evaluate(false, prefill), decoded = run.evaluate(true, one_by_one), mixed = run.evaluate(true, unequal);
    CHECK(test::error_of(golden, whole) <= bound, name, " in prefill: off by ", test::error_of(golden, whole), " of the deviation");
    CHECK(test::error_of(golden, decoded) <= bound, name, " token by token: off by ", test::error_of(golden, decoded));
    CHECK(test::error_of(golden, mixed) <= bound, name, " in unequal rows: off by ", test::error_of(golden, mixed));
    CHECK(difference_of(golden, whole, decoded) <= between, name, ": token by token differs by ", difference_of(golden, whole, decoded));
    CHECK(difference_of(golden, whole, mixed) <= between, name, ": in unequal rows differs by ", difference_of(golden, whole, mixed));
  }
}

TEST("every architecture has the same bits in any company, where that is asked for") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, on_gpu(true));
    const auto whole = run.evaluate(false, prefill);
    CHECK(test::error_of(golden, whole) <= (is_routed(run.model()) ? routed_error_max : error_max), name, ": off by ", test::error_of(golden, whole));
    CHECK(run.evaluate(true, one_by_one) == whole, name, ": other bits token by token");
    CHECK(run.evaluate(true, unequal) == whole, name, ": other bits in unequal rows");
  }
}

TEST("features switched off show on the GPU too") {
  const auto error_without = [](const char* name, const GoldenRun::Edit& edit) {
    const GoldenModel golden = test::read_golden(name);
    return test::error_of(golden, GoldenRun(golden, on_gpu(false), edit).evaluate(false, prefill));
  };
  const auto windows = [](Model& model) {
    for (Operator& op : model.operators)
      if (auto* attend = std::get_if<Attend>(&op)) attend->window = 0;
  };
  const auto sinks = [](Model& model) {
    for (Operator& op : model.operators)
      if (auto* attend = std::get_if<Attend>(&op)) attend->sinks = nullptr;
  };
  CHECK(error_without("mistral", windows) > 2 * error_max, "windows");
  CHECK(error_without("gpt-oss", sinks) > 2 * routed_error_max, "sinks");
}
