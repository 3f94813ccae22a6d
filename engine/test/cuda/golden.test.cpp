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
// 2^-9; on a CPU float16 keys and values alone, which round by 2^-12, bring these models' logits off by up to 0.015.
constexpr double error_max = 0.25;
// Where tokens are routed, one whose scores are close goes to another expert: there it is the root of the mean square that is bounded.
constexpr double routed_error_max = 0.25;
// Of weights in E4M3, at the root of the mean square.
constexpr double fp8_error_max = 0.35;
// Of keys and values in E4M3, likewise.
constexpr double kv8_error_max = 0.2;

const GoldenRun::Count prefill = [](int, size_t) { return 200; };
const GoldenRun::Count one_by_one = [](int, size_t) { return 1; };
const GoldenRun::Count unequal = [](int step, size_t prompt) { return 1 + (step * 11 + static_cast<int>(prompt) * 17) % 40; };

test::GoldenMachine on_gpu(bool is_deterministic, bool as_fp8 = false, KvElement element = KvElement::bfloat16) {
  if (const auto gpu = inspect_cuda(); !gpu.ok()) throw test::Skipped{gpu.message()};
  return {element, cuda_granule_bytes, reserve_cuda_pages,
          [=](const ModelFile& file, const Model& model, const KvSlots& slots, Team& team, int slot_count, int context, int tokens_max) {
            std::vector<std::string> log;
            MatrixWork work;
            const CudaLimits limits{.tokens_max = tokens_max, .slots = slot_count, .samples_max = slot_count, .context_tokens = context, .as_fp8 = as_fp8, .is_deterministic = is_deterministic};
            return make_cuda_backend(file, model, slots, team, limits, log, work);
          }};
}

bool is_routed(const Model& model) {
  return std::ranges::any_of(model.operators, [](const Operator& op) { return std::holds_alternative<Experts>(op); });
}

// How far off logits are, as a share of the fixture's deviation: the worst, or the root of the mean square.
class Off {
 public:
  explicit Off(bool is_mean) : is_mean_(is_mean) {}
  void add(double difference) {
    largest_ = std::max(largest_, std::isfinite(difference) ? std::fabs(difference) : HUGE_VAL);
    squares_ += difference * difference;
    count_++;
  }
  double share(double deviation) const { return (is_mean_ ? std::sqrt(squares_ / count_) : largest_) / deviation; }

 private:
  bool is_mean_;
  double largest_ = 0, squares_ = 0;
  int64_t count_ = 0;
};

double error_of(const GoldenModel& golden, const std::vector<std::vector<float>>& logits, bool is_mean) {
  Off off(is_mean);
  for (size_t p = 0; p < golden.prompts.size(); p++) {
    const test::GoldenPrompt& prompt = golden.prompts[p];
    const size_t vocabulary = logits[p].size() / prompt.tokens.size();
    for (size_t i = 0; i < prompt.logits.size(); i++) {
      const auto position = static_cast<size_t>(prompt.positions[i / prompt.ids.size()]), id = static_cast<size_t>(prompt.ids[i % prompt.ids.size()]);
      off.add(double{logits[p][position * vocabulary + id]} - prompt.logits[i]);
    }
  }
  return off.share(golden.deviation);
}

double difference_of(const GoldenModel& golden, const Model& model, const std::vector<std::vector<float>>& one, const std::vector<std::vector<float>>& other) {
  Off off(is_routed(model));
  for (size_t p = 0; p < one.size(); p++)
    for (size_t i = 0; i < one[p].size(); i++) off.add(double{one[p][i]} - other[p][i]);
  return off.share(golden.deviation);
}

}  // namespace

TEST("every architecture agrees with transformers on the GPU, however its tokens come") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, on_gpu(false));
    const double bound = is_routed(run.model()) ? routed_error_max : error_max;
    const auto whole = run.evaluate(false, prefill), decoded = run.evaluate(true, one_by_one), mixed = run.evaluate(true, unequal);
    for (const auto& [logits, how] : {std::pair(&whole, "in prefill"), std::pair(&decoded, "token by token"), std::pair(&mixed, "in unequal rows")}) {
      const double error = error_of(golden, *logits, is_routed(run.model())), difference = difference_of(golden, run.model(), whole, *logits);
      CHECK(error <= bound, name, " ", how, ": off by ", error, " of the deviation");
      CHECK(difference <= 2 * bound, name, " ", how, " differs by ", difference);
    }
  }
}

TEST("every architecture has the same bits in any company, where that is asked for") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, on_gpu(true));
    const auto whole = run.evaluate(false, prefill);
    const double error = error_of(golden, whole, is_routed(run.model()));
    CHECK(error <= (is_routed(run.model()) ? routed_error_max : error_max), name, ": off by ", error);
    CHECK(run.evaluate(true, one_by_one) == whole, name, ": other bits token by token");
    CHECK(run.evaluate(true, unequal) == whole, name, ": other bits in unequal rows");
  }
}

// Each weight is off by up to a sixteenth, 2.6% at the root of the mean square, and many of them in a row.
TEST("weights in E4M3 stay near the float32 ones in every architecture, multiplied by cuBLASLt and by our own kernel, and that has the same bits in any company") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun both(golden, on_gpu(false, true)), own(golden, on_gpu(true, true));
    const auto whole = own.evaluate(false, prefill);
    for (const auto& [logits, how] : {std::pair(both.evaluate(false, prefill), "in prefill"), std::pair(both.evaluate(true, one_by_one), "token by token"), std::pair(whole, "deterministic")}) {
      const double error = error_of(golden, logits, true);
      CHECK(error <= fp8_error_max, name, " ", how, ": off by ", error, " of the deviation");
    }
    CHECK(own.evaluate(true, one_by_one) == whole, name, ": other bits token by token");
    CHECK(own.evaluate(true, unequal) == whole, name, ": other bits in unequal rows");
  }
}

// Each key and value is off by up to a sixteenth, as weights in E4M3 are.
TEST("keys and values in E4M3 stay near the float32 ones in every architecture, however tokens come, and have the same bits in any company where that is asked for") {
  for (const std::string& name : test::golden_models()) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun fast(golden, on_gpu(false, false, KvElement::e4m3)), same(golden, on_gpu(true, false, KvElement::e4m3));
    const auto alone = same.evaluate(false, prefill);
    for (const auto& [logits, how] : {std::pair(fast.evaluate(false, prefill), "in prefill"), std::pair(fast.evaluate(true, one_by_one), "token by token"),
                                      std::pair(fast.evaluate(true, unequal), "in unequal rows"), std::pair(alone, "deterministic")}) {
      const double error = error_of(golden, logits, true);
      CHECK(error <= kv8_error_max, name, " ", how, ": off by ", error, " of the deviation");
    }
    CHECK(same.evaluate(true, one_by_one) == alone, name, ": other bits token by token");
    CHECK(same.evaluate(true, unequal) == alone, name, ": other bits in unequal rows");
  }
}

TEST("features switched off show on the GPU too") {
  const auto error_without = [](const char* name, const GoldenRun::Edit& edit) {
    const GoldenModel golden = test::read_golden(name);
    GoldenRun run(golden, on_gpu(false), edit);
    return error_of(golden, run.evaluate(false, prefill), is_routed(run.model()));
  };
  const auto windows = [](Model& model) {
    for (Operator& op : model.operators)
      if (auto* attend = std::get_if<Attend>(&op)) attend->window = 0;
  };
  const auto sinks = [](Model& model) {
    for (Operator& op : model.operators)
      if (auto* attend = std::get_if<Attend>(&op)) attend->sinks = nullptr;
  };
  const auto nothing = [](Model&) {};
  for (const auto& [name, edit] : {std::pair<const char*, GoldenRun::Edit>("mistral", windows), std::pair<const char*, GoldenRun::Edit>("gpt-oss", sinks)})
    CHECK(error_without(name, edit) > 2 * error_without(name, nothing), name, ": ", error_without(name, edit), " beside ", error_without(name, nothing));
}
