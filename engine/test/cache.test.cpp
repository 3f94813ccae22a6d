// The prefix cache against no cache: the same logits, bit for bit, however a sequence came by the keys and values that it reads.
#include <algorithm>
#include <cstring>
#include <thread>
#include <tuple>
#include <utility>

#include "engine.h"
#include "support/golden_model.h"
#include "support/kernel_sets.h"
#include "support/random.h"
#include "support/recorder.h"
#include "support/test.h"
#include "support/tiny_model.h"

using namespace millrace;

namespace {

using Tokens = std::vector<int32_t>;

constexpr int slot_count = 8, step_tokens_max = 64;

// One of the fixtures with a cache, in pages so small that prompts cross several, and windows too.
class CachedModel {
 public:
  CachedModel(const std::string& name, KvElement element, int pages_of) {
    const test::GoldenModel golden = test::read_golden(name);
    std::tie(file_, model_) = test::open_golden(golden);
    context = golden.prompts[0].context;
    choose_frequencies(model_, context);
    const ModelConfig& config = model_.config;
    const KvPlan kv = plan_pages(windows_of(model_, context), config.kv_heads, config.head_dim, element, 4096);
    groups = kv.group_count();
    need_ = kv_page_need(kv, step_tokens_max);
    auto memory = reserve_kv_memory({slot_count * kv.group_count(), kv.pages_a_range(context), need_.of(context) * pages_of}, kv.page_bytes());
    REQUIRE(memory.ok(), memory.message());
    slots_ = std::make_unique<KvSlots>(memory.take(), kv, slot_count);
    const Precision precision = element == KvElement::float32 ? Precision::float32 : Precision::stored;
    backend_ = std::make_unique<CpuBackend>(model_, *slots_, team_, *kernels_of(KernelSet::automatic, inspect_machine()), precision, step_tokens_max);
  }

  Taken start(const Tokens& tokens) {
    const Taken taken = slots_->take(tokens, need_.of(context));
    REQUIRE(taken.slot >= 0 && slots_->open(taken.slot).ok());
    return taken;
  }
  // Logits of these tokens, which stand at `first`, [count][vocabulary]; of a slot that is kept for others to find, or not.
  std::vector<float> compute(int slot, int first, std::span<const int32_t> tokens, bool is_kept = true) {
    const int count = static_cast<int>(tokens.size());
    REQUIRE(slots_->grow(slot, first, count).ok());
    std::vector<float> logits(tokens.size() * static_cast<size_t>(model_.config.vocabulary));
    Plan plan{.rows = {{.slot = slot, .first = first, .count = count, .samples = count}}, .tokens = {tokens.begin(), tokens.end()}, .logits = logits.data()};
    backend_->run(plan);
    if (is_kept) slots_->computed(slot, tokens);
    return logits;
  }
  std::vector<float> alone(const Tokens& tokens) {
    const int slot = slots_->take(need_.of(context));
    REQUIRE(slot >= 0 && slots_->open(slot).ok());
    std::vector<float> logits;
    for (int first = 0; first < static_cast<int>(tokens.size()); first += step_tokens_max) {
      const auto count = std::min<size_t>(step_tokens_max, tokens.size() - static_cast<size_t>(first));
      const std::vector<float> part = compute(slot, first, std::span(tokens).subspan(static_cast<size_t>(first), count), false);
      logits.insert(logits.end(), part.begin(), part.end());
    }
    slots_->give_back(slot);
    return logits;
  }
  void end(int slot) { slots_->give_back(slot); }
  int vocabulary() const { return model_.config.vocabulary; }
  const PrefixCounts& counts() const { return slots_->counts(); }

  int context = 0, groups = 0;

 private:
  std::unique_ptr<ModelFile> file_;
  Model model_;
  PageNeed need_;
  Team team_{2};
  std::unique_ptr<KvSlots> slots_;
  std::unique_ptr<CpuBackend> backend_;
};

struct Sequence {
  int slot = -1, done = 0;
  Tokens tokens;
  std::vector<float> expected;  // of all its positions, computed without the cache
};

// Random turns of random conversations, some at once; every logit that is computed is compared.
void check_turns(CachedModel& model, test::Random& random, int turns, const std::string& name) {
  const auto vocabulary = static_cast<size_t>(model.vocabulary());
  std::vector<Tokens> past = {random.tokens(model.context / 2, model.vocabulary())};
  std::vector<Sequence> running;
  for (int turn = 0; turn < turns; turn++) {
    const Tokens& old = past[static_cast<size_t>(random.between(std::max(0, static_cast<int>(past.size()) - 4), static_cast<int>(past.size()) - 1))];
    // On with all of it, without its end, or from some point on otherwise.
    const int size = static_cast<int>(old.size()), kept = random.chance(0.5) ? size : random.chance(0.5) ? size - std::min(size, random.between(1, 12)) : random.between(0, size);
    Sequence next{.tokens = {old.begin(), old.begin() + kept}};
    const Tokens more = random.tokens(random.between(1, 90), model.vocabulary());
    next.tokens.insert(next.tokens.end(), more.begin(), more.end());
    next.tokens.resize(std::min<size_t>(next.tokens.size(), static_cast<size_t>(model.context)));
    next.expected = model.alone(next.tokens);
    const Taken taken = model.start(next.tokens);
    next.slot = taken.slot;
    next.done = taken.cached;
    running.push_back(std::move(next));
    // Steps in which all have a row; some sequences stay unfinished, and the next turn finds them running.
    for (int step = random.between(1, 6); step-- > 0;)
      for (size_t i = 0; i < running.size();) {
        Sequence& each = running[i];
        const int left = static_cast<int>(each.tokens.size()) - each.done, count = std::min(left, random.chance(0.3) ? 1 : random.between(1, step_tokens_max));
        const std::vector<float> logits = model.compute(each.slot, each.done, std::span(each.tokens).subspan(static_cast<size_t>(each.done), static_cast<size_t>(count)));
        const bool is_same = std::memcmp(logits.data(), &each.expected[static_cast<size_t>(each.done) * vocabulary], logits.size() * sizeof(float)) == 0;
        REQUIRE(is_same, name, ": other bits at positions ", each.done, " to ", each.done + count - 1, " of ", each.tokens.size(), ", turn ", turn);
        each.done += count;
        if (count < left && running.size() < 3) {
          i++;
          continue;
        }
        model.end(each.slot);
        past.push_back({each.tokens.begin(), each.tokens.begin() + each.done});
        running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
      }
  }
  for (const Sequence& each : running) model.end(each.slot);
}

}  // namespace

// Room for 12 whole contexts: what is found is adopted or shared; for 4: what was found a moment ago is evicted. Sanitizers get half of them.
TEST("logits have the same bits with the cache and without, through windows, pages and evictions") {
  test::Random random;
  uint64_t evicted = 0;
  int cases = 0;
  for (const char* name : {"llama3", "mistral", "gemma2", "gemma3", "gpt-oss"})
    for (const auto& [pages_of, element] : {std::pair{12, KvElement::float32}, {4, KvElement::float16}, {6, KvElement::int8}}) {
      if (test::is_sanitized && cases++ % 2 == 1) continue;
      CachedModel model(name, element, pages_of);
      check_turns(model, random, 30, name);
      CHECK(model.counts().hits >= 5, name, " found ", model.counts().hits, " prefixes");
      evicted += model.counts().evicted_tokens;
    }
  CHECK(evicted > 0);
  CHECK_EQUAL(CachedModel("gemma3", KvElement::float16, 4).groups, 2);
  CHECK_EQUAL(CachedModel("mistral", KvElement::float16, 4).groups, 1);
}

// A conversation of four turns, each told with all that was said before it, to an engine that keeps and to one that does not.
TEST("the next turn is answered as without the cache, and says how much of its prompt was in memory") {
  test::Random random;
  const test::TemporaryFile path(tiny_model({.type = Type::q4_1}, random));
  test::Recorder kept, forgot;
  const auto with = test::load({.path = path.path(), .threads = 2, .slots = 2}, kept);
  const auto without = test::load({.path = path.path(), .threads = 2, .slots = 2, .prefix_cache = false}, forgot);
  Tokens said = random.tokens(50, 256);
  uint32_t cached = 0;
  for (uint32_t turn = 1; turn <= 4; turn++) {
    const Request request{.id = turn, .prompt = said, .tokens_max = 30, .sampling = {.temperature = 0.8f, .seed = turn}};
    REQUIRE(with->submit(request).ok() && without->submit(request).ok());
    const test::Told told = kept.finished(turn);
    CHECK_EQUAL(told.ids(), forgot.finished(turn).ids());
    CHECK_EQUAL(told.end()->cached_tokens, cached);
    CHECK_EQUAL(forgot.finished(turn).end()->cached_tokens, 0u);
    const Tokens answer = told.ids(), asked = random.tokens(20, 256);
    said.insert(said.end(), answer.begin(), answer.end());
    cached = static_cast<uint32_t>(said.size()) - 1;  // the last token was sampled, not yet computed
    said.insert(said.end(), asked.begin(), asked.end());
  }
  with->close();
  without->close();
  const auto& stats = with->stats().prefix_cache;
  CHECK_EQUAL(stats.hits, uint64_t{3});
  CHECK_EQUAL(stats.hit_tokens + with->stats().prompt_tokens, without->stats().prompt_tokens);
  CHECK_EQUAL(without->stats().prefix_cache.hits, uint64_t{0});
}

// One slot and pages for little more than one: whoever is paused loses both, and perhaps its pages, to the next.
TEST("an answer that was paused goes on token for token, whatever was evicted meanwhile") {
  test::Random random;
  const test::TemporaryFile path(tiny_model({.type = Type::q4_1}, random));
  test::Recorder recorder;
  const auto engine = test::load({.path = path.path(), .threads = 2, .kv_memory_bytes = 3 * 65536, .slots = 1}, recorder);
  const auto is_begun = [](const test::Told& told) { return told.ids().size() >= 3; };
  std::vector<Request> requests;
  for (uint32_t id = 1; id <= 4; id++)
    requests.push_back({.id = id, .prompt = random.tokens(300, 256), .tokens_max = 300, .sampling = {.temperature = 0.9f, .seed = id}});
  // Each is paused once it has begun, so that the next can begin.
  for (const Request& request : requests) {
    REQUIRE(engine->submit(request).ok());
    recorder.wait(request.id, is_begun);
    engine->pause(request.id);
  }
  engine->pause(99);
  for (const Request& request : requests) CHECK(recorder.told(request.id).end() == nullptr);
  for (const Request& request : requests) engine->resume(request.id);
  for (const Request& request : requests) CHECK(recorder.finished(request.id).end()->finish == Finish::length);
  CHECK(engine->stats().prefix_cache.evicted_tokens > 0);
  for (Request request : requests) {
    request.id += 10;
    REQUIRE(engine->submit(request).ok());
    CHECK_EQUAL(recorder.finished(request.id).ids(), recorder.told(request.id - 10).ids());
    size_t started = 0;
    for (const Event& event : recorder.told(request.id - 10).events) started += event.kind == EventKind::started;
    CHECK_EQUAL(started, size_t{1});
  }
}

TEST("a paused answer can be cancelled, and the engine closed over it") {
  test::Random random;
  const test::TemporaryFile path(tiny_model({.context = 1 << 16}, random));
  test::Recorder recorder;
  const auto engine = test::load({.path = path.path(), .threads = 2, .context_tokens = 1 << 16, .slots = 1}, recorder);
  for (uint32_t id = 1; id <= 3; id++) {
    REQUIRE(engine->submit({.id = id, .prompt = random.tokens(20, 256), .tokens_max = 60000}).ok());
    recorder.wait(id, [](const test::Told& told) { return !told.ids().empty(); });
    engine->pause(id);
  }
  engine->cancel(1);
  CHECK(recorder.finished(1).end()->finish == Finish::cancelled);
  engine->resume(1);
  engine->close();
  for (const uint32_t id : {2u, 3u}) CHECK(recorder.finished(id).end()->finish == Finish::closed);
}

// A prompt that many have in common is computed by the first and found by the others, while the first still runs.
TEST("requests that begin alike share what the first of them computed, and are answered as alone") {
  test::Random random;
  const test::TemporaryFile path(tiny_model({.context = 4096}, random));
  test::Recorder recorder;
  const auto engine = test::load({.path = path.path(), .threads = 2, .slots = 6}, recorder);
  const Tokens system = random.tokens(600, 256);
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 6; i++) {
    Request request{.id = i, .prompt = system, .tokens_max = i == 0 ? 400 : 20};
    const Tokens own = random.tokens(random.between(5, 40), 256);
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    requests.push_back(request);
  }
  REQUIRE(engine->submit(requests[0]).ok());
  recorder.wait(0, [](const test::Told& told) { return told.events.size() > 1; });
  for (uint32_t i = 1; i < 6; i++) REQUIRE(engine->submit(requests[i]).ok());
  for (uint32_t i = 1; i < 6; i++) CHECK(recorder.finished(i).end()->cached_tokens >= 600, recorder.finished(i).end()->cached_tokens);
  recorder.finished(0);
  test::Recorder plain;
  const auto without = test::load({.path = path.path(), .threads = 1, .slots = 1, .prefix_cache = false}, plain);
  for (const Request& request : requests) {
    REQUIRE(without->submit(request).ok());
    CHECK_EQUAL(recorder.told(request.id).ids(), plain.finished(request.id).ids());
  }
}

// Apart, each would need a third of the memory.
TEST("requests that begin alike run together in memory that has room for half of them apart") {
  test::Random random;
  const test::TemporaryFile path(tiny_model({.context = 4096}, random));
  test::Recorder recorder;
  constexpr int requests = 6, pages = 30;  // of 64 KiB, which have 256 tokens
  const auto engine = test::load({.path = path.path(), .threads = 2, .kv_memory_bytes = uint64_t{pages} << 16, .slots = 8}, recorder);
  const Tokens system = random.tokens(2048, 256);
  for (uint32_t i = 0; i < requests; i++) {
    Request request{.id = i, .prompt = system, .tokens_max = 200};
    const Tokens own = random.tokens(5, 256);
    request.prompt.insert(request.prompt.end(), own.begin(), own.end());
    REQUIRE(engine->submit(request).ok());
    if (i == 0) recorder.wait(0, [](const test::Told& told) { return told.events.size() > 1; });
  }
  int most = 0;
  uint64_t promised = 0;
  for (EngineStats stats = engine->stats(); stats.running + stats.waiting > 0; stats = engine->stats()) {
    most = std::max(most, stats.running);
    promised = std::max(promised, stats.kv_bytes_promised);
    std::this_thread::yield();
  }
  CHECK_EQUAL(most, requests);
  CHECK(promised <= uint64_t{pages} << 16, promised >> 16, " pages are promised");
  for (uint32_t i = 0; i < requests; i++) CHECK_EQUAL(recorder.finished(i).ids().size(), size_t{200});
}
