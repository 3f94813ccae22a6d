#include "golden_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <tuple>

#include "support/test.h"

namespace millrace::test {
namespace {

constexpr int step_tokens_max = 256;

class Words {
 public:
  explicit Words(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    REQUIRE(!bytes_.empty(), path, " is missing: remake it with scripts/golden-models.py");
  }

  template <typename Word>
  Word take() {
    return take_all<Word>(1)[0];
  }
  template <typename Word>
  std::vector<Word> take_all(size_t count) {
    REQUIRE(count <= (bytes_.size() - at_) / sizeof(Word), "golden.bin is cut short");
    std::vector<Word> words(count);
    std::memcpy(words.data(), bytes_.data() + at_, count * sizeof(Word));
    at_ += count * sizeof(Word);
    return words;
  }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

}  // namespace

std::string GoldenModel::path() const { return std::string(MILLRACE_GOLDEN_MODELS) + "/" + name; }

std::vector<std::string> golden_models() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(MILLRACE_GOLDEN_MODELS)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

GoldenModel read_golden(const std::string& name) {
  GoldenModel golden{.name = name};
  Words words(golden.path() + "/golden.bin");
  golden.prompts.resize(words.take<uint32_t>());
  for (GoldenPrompt& prompt : golden.prompts) {
    prompt.context = words.take<int32_t>();
    prompt.tokens = words.take_all<int32_t>(words.take<uint32_t>());
    prompt.positions = words.take_all<int32_t>(words.take<uint32_t>());
    prompt.ids = words.take_all<int32_t>(words.take<uint32_t>());
    prompt.logits = words.take_all<float>(prompt.positions.size() * prompt.ids.size());
  }
  golden.deviation = words.take<float>();
  return golden;
}

std::pair<std::unique_ptr<ModelFile>, Model> open_golden(const GoldenModel& golden) {
  auto file = open_model(golden.path());
  REQUIRE(file.ok(), file.message());
  std::unique_ptr<ModelFile> held = file.take();
  auto model = read_model(*held);
  REQUIRE(model.ok(), model.message());
  return {std::move(held), model.take()};
}

// In small pages, so that a fixture has several.
GoldenMachine golden_cpu(const Kernels& kernels, Precision precision) {
  return {precision == Precision::float32 ? KvElement::float32 : KvElement::float16, 4096, [](int64_t places, int64_t page_bytes, int) { return reserve_mmap_pages(places, page_bytes); },
          [&kernels, precision](const ModelFile&, const Model& model, const KvSlots& slots, Team& team, int, int, int tokens_max) {
            return std::make_unique<CpuBackend>(model, slots, team, kernels, precision, tokens_max);
          }};
}

GoldenRun::GoldenRun(const GoldenModel& golden, GoldenMachine machine, const Edit& edit) : golden_(golden), machine_(std::move(machine)) {
  std::tie(file_, model_) = open_golden(golden);
  if (edit) edit(model_);
}

std::vector<std::vector<float>> GoldenRun::evaluate(bool together, const Count& count) {
  std::vector<std::vector<float>> logits;
  std::set<int> contexts;
  for (const GoldenPrompt& prompt : golden_.prompts) {
    logits.emplace_back(prompt.tokens.size() * static_cast<size_t>(model_.config.vocabulary));
    contexts.insert(prompt.context);
  }
  for (const int context : contexts) {
    std::vector<size_t> same;
    for (size_t p = 0; p < golden_.prompts.size(); p++)
      if (golden_.prompts[p].context == context) same.push_back(p);
    if (together)
      evaluate(same, count, logits);
    else
      for (const size_t p : same) evaluate({p}, count, logits);
  }
  return logits;
}

void GoldenRun::evaluate(const std::vector<size_t>& prompts, const Count& count, std::vector<std::vector<float>>& logits) {
  const int context = golden_.prompts[prompts[0]].context, slots_count = static_cast<int>(prompts.size());
  Model model = model_;
  choose_frequencies(model, context);
  const ModelConfig& config = model.config;
  const KvPlan kv = plan_pages(windows_of(model, context), config.kv_heads, config.head_dim, machine_.element, machine_.granule_bytes);
  const int pages = kv_page_need(kv, step_tokens_max).of(context);
  const KvMemory::Shape shape{slots_count * kv.group_count(), kv.pages_a_range(context), pages * slots_count};
  auto reserved = machine_.reserve(shape.places(), kv.page_bytes(), shape.pages_max);
  REQUIRE(reserved.ok(), reserved.message());
  KvSlots slots(std::make_unique<KvMemory>(reserved.take(), shape), kv, slots_count);
  Team team(2);
  const std::unique_ptr<Backend> backend = machine_.make(*file_, model, slots, team, slots_count, context, step_tokens_max);

  struct Progress {
    size_t prompt;
    int slot, done = 0;
  };
  std::vector<Progress> running;
  for (const size_t prompt : prompts) {
    running.push_back({prompt, slots.take(pages)});
    REQUIRE(slots.open(running.back().slot).ok());
  }
  for (int step = 0; !running.empty(); step++) {
    Plan plan;
    for (Progress& each : running) {
      const std::vector<int32_t>& tokens = golden_.prompts[each.prompt].tokens;
      const int now = std::min(count(step, each.prompt), static_cast<int>(tokens.size()) - each.done);
      REQUIRE(slots.grow(each.slot, each.done, now).ok());
      plan.rows.push_back({.slot = each.slot, .first = each.done, .count = now, .samples = now});
      plan.tokens.insert(plan.tokens.end(), tokens.begin() + each.done, tokens.begin() + each.done + now);
    }
    std::vector<float> out(plan.tokens.size() * static_cast<size_t>(config.vocabulary));
    plan.logits = out.data();
    backend->run(plan);
    const float* from = out.data();
    for (size_t i = 0; i < running.size(); i++) {
      const size_t size = static_cast<size_t>(plan.rows[i].count) * static_cast<size_t>(config.vocabulary);
      std::copy_n(from, size, &logits[running[i].prompt][static_cast<size_t>(running[i].done) * static_cast<size_t>(config.vocabulary)]);
      from += size;
      running[i].done += plan.rows[i].count;
    }
    std::erase_if(running, [&](const Progress& each) { return each.done == static_cast<int>(golden_.prompts[each.prompt].tokens.size()); });
  }
}

double error_of(const GoldenModel& golden, const std::vector<std::vector<float>>& logits) {
  double largest = 0;
  for (size_t p = 0; p < golden.prompts.size(); p++) {
    const GoldenPrompt& prompt = golden.prompts[p];
    const size_t vocabulary = logits[p].size() / prompt.tokens.size();
    for (size_t i = 0; i < prompt.logits.size(); i++) {
      const auto position = static_cast<size_t>(prompt.positions[i / prompt.ids.size()]), id = static_cast<size_t>(prompt.ids[i % prompt.ids.size()]);
      const double error = std::fabs(logits[p][position * vocabulary + id] - prompt.logits[i]);
      // What is no number is infinitely wrong.
      largest = std::max(largest, std::isfinite(error) ? error : HUGE_VAL);
    }
  }
  return largest / golden.deviation;
}

}  // namespace millrace::test
