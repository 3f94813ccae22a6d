// Answers that began elsewhere: with any of its first tokens brought, an answer goes on as if it had never been interrupted, bit for bit.
#include <algorithm>

#include "constrain/grammar.h"
#include "events.h"
#include "support/test.h"
#include "support/tiny_engine.h"

using namespace millrace;
using test::TinyEngine;
using test::Told;

namespace {

using Tokens = std::vector<int32_t>;

constexpr int32_t end_token = 259;

Request continued(Request request, const Tokens& answer, size_t count) {
  request.continued.assign(answer.begin(), answer.begin() + static_cast<std::ptrdiff_t>(count));
  return request;
}

// A text within the answer that the tokens from `first` to `last` have together.
std::string text_of(const Told& told, size_t first, size_t last) {
  std::vector<size_t> ends;
  size_t before = 0;
  for (const Event& event : told.events) {
    for (const uint32_t end : event.ends) ends.push_back(before + end);
    before += event.text.size();
  }
  return told.text().substr(ends[first - 1], ends[last] - ends[first - 1]);
}

bool is_same(const TokenLogprob& a, const TokenLogprob& b) { return a.token == b.token && a.logprob == b.logprob; }

// What was told of an answer that was continued with `count` tokens is what is told of all of it.
void check_joined(const Told& told, const Told& whole, const Request& request, size_t count) {
  test::check_order(told, true);
  REQUIRE(told.ids() == whole.ids(), count, " tokens were brought: ", test::show(told.ids()), ", not ", test::show(whole.ids()));
  CHECK_EQUAL(told.text(), whole.text());
  const Event &end = *told.end(), &expected = *whole.end();
  CHECK(end.finish == expected.finish && end.seq == expected.seq, count, " tokens were brought, and it ended with ", end.seq);
  CHECK_EQUAL(end.prompt_tokens, static_cast<uint32_t>(request.prompt.size()));
  CHECK(end.cached_tokens <= end.prompt_tokens, end.cached_tokens, " of ", end.prompt_tokens);
  // Those brought are told apart from those sampled, which alone have log-probabilities.
  for (const Event& event : told.events) {
    if (event.kind != EventKind::tokens) continue;
    const bool is_brought = event.seq <= count;
    CHECK(is_brought || event.seq - event.ids.size() >= count, "tokens up to ", event.seq, " were told together, of which ", count, " were brought");
    CHECK_EQUAL(event.logprobs.size(), is_brought || request.sampling.logprobs < 0 ? 0 : event.ids.size() * static_cast<size_t>(1 + request.sampling.logprobs));
  }
  const auto ours = told.logprobs(), all = whole.logprobs();
  CHECK(ours.size() <= all.size() && std::equal(ours.rbegin(), ours.rend(), all.rbegin(), is_same), count, " tokens were brought, and others were likely");
}

// Everything that depends on what an answer has had: greedy and seeded, penalties, a least length after which the end comes soon, stop
// strings that fall on several tokens, and log-probabilities. Token ids below 256 are bytes, so that code points are split all over.
std::vector<Request> requests(TinyEngine& running) {
  const Tokens prompt = running.random.tokens(30, 256);
  const SamplingOptions seeded{.temperature = 1.4f, .top_k = 100, .repetition_penalty = 1.3f, .presence_penalty = 0.4f, .frequency_penalty = 0.3f, .seed = 7};
  std::vector<Request> all = {{.prompt = prompt, .tokens_max = 30, .ignores_end = true}, {.prompt = prompt, .tokens_max = 30, .ignores_end = true, .sampling = seeded}};
  all.push_back({.prompt = prompt, .tokens_max = 60, .tokens_min = 20, .sampling = seeded});
  all.back().sampling.bias = {{end_token, 5}};
  all.back().sampling.logprobs = 2;
  all.push_back(all[1]);
  all.back().stops = {text_of(running.ask(all[1]), 20, 23), "never said by chance"};
  all.back().tokens_min = 9;
  return all;
}

}  // namespace

TEST("an answer that is continued at any token is the undisturbed one, alone and without a cache") {
  TinyEngine running({.slots = 1, .prefix_cache = false});
  for (const Request& request : requests(running)) {
    const Told whole = running.ask(request);
    const Tokens answer = whole.ids();
    for (size_t count = 1; count <= answer.size(); count++) check_joined(running.ask(continued(request, answer, count)), whole, request, count);
  }
}

TEST("an answer that is continued at any token is the undisturbed one, beside all the others and with a cache") {
  TinyEngine running;
  std::vector<Request> asked;
  std::vector<uint32_t> ids;
  std::vector<Told> wholes;
  for (const Request& request : requests(running)) {
    const Told whole = running.ask(request);
    for (size_t count = 1; count <= whole.ids().size(); count++) {
      asked.push_back(continued(request, whole.ids(), count));
      wholes.push_back(whole);
    }
  }
  for (const Request& request : asked) ids.push_back(running.submit(request));
  for (size_t i = 0; i < asked.size(); i++) check_joined(running.recorder.finished(ids[i]), wholes[i], asked[i], asked[i].continued.size());
  CHECK(running.engine->stats().prefix_cache.hits > 0);
}

// Its slot and its pages go to others, and what it was continued with is computed anew.
TEST("a continued answer that is paused goes on as the undisturbed one") {
  TinyEngine running({.kv_memory_bytes = test::on_gpu() ? uint64_t{3 << 21} : uint64_t{3 * 65536}, .slots = 1}, {.type = Type::q4_1});
  Request request{.prompt = running.random.tokens(200, 256), .tokens_max = 300, .sampling = {.temperature = 0.9f, .seed = 3}};
  const Told whole = running.ask(request);
  const uint32_t paused = running.submit(continued(request, whole.ids(), 150));
  running.recorder.wait(paused, [](const Told& told) { return told.ids().size() > 155; });
  running.engine->pause(paused);
  const Told other = running.ask({.prompt = running.random.tokens(300, 256), .tokens_max = 300});
  CHECK(other.end()->finish == Finish::length);
  running.engine->resume(paused);
  check_joined(running.recorder.finished(paused), whole, request, 150);
}

TEST("a code point of which the first bytes were brought is completed, and told with the first of them") {
  TinyEngine running;
  const Request request{.prompt = {1}, .continued = {'a', 0xe2, 0x82}, .tokens_max = 5, .sampling = {.logprobs = 1, .bias = {{0xac, 100}}}};
  const Told told = running.ask(request);
  test::check_order(told);
  CHECK_EQUAL(told.ids(), (Tokens{'a', 0xe2, 0x82, 0xac, 0xac}));
  // The 'a' at once; the others with the byte that completes them, each part in an event of its own.
  const auto is = [&](size_t at, const Tokens& ids, const std::string& text, const std::vector<uint32_t>& ends) {
    REQUIRE(at < told.events.size(), told.events.size(), " events");
    CHECK_EQUAL(told.events[at].ids, ids);
    CHECK_EQUAL(told.events[at].text, text);
    CHECK_EQUAL(told.events[at].ends, ends);
  };
  is(0, {'a'}, "a", {1});
  CHECK(told.events[1].kind == EventKind::started);
  is(2, {0xe2, 0x82}, "\xe2\x82\xac", {3, 3});
  is(3, {0xac}, "", {0});
  is(4, {0xac}, "\xef\xbf\xbd", {3});
}

// Its reader has nothing to wait for, so it does not stand in line.
TEST("an answer that ends within what was brought ends at once, though nobody has a slot for it") {
  TinyEngine running({.context_tokens = 1 << 16, .slots = 1}, {.layers = 1, .vocabulary = 260, .context = 1 << 16, .end_token = true});
  const uint32_t other = running.submit({.prompt = {1}, .tokens_max = 60000, .ignores_end = true});
  running.recorder.wait(other, [](const Told& told) { return !told.ids().empty(); });
  const auto ends = [&](Request request, Finish finish, uint32_t seq, const std::string& text) {
    const Told told = running.ask(request);
    test::check_order(told);
    CHECK(told.end()->finish == finish && told.end()->seq == seq, told.end()->seq);
    CHECK_EQUAL(told.text(), text);
    CHECK(std::ranges::none_of(told.events, [](const Event& event) { return event.kind == EventKind::started; }));
  };
  const Request request{.prompt = {1}, .continued = {'a', 'b', 'c', 'd', 'e'}, .tokens_max = 5};
  ends(request, Finish::length, 5, "abcde");
  Request stopped = request;
  stopped.tokens_max = 9;
  stopped.stops = {"cd"};
  ends(stopped, Finish::stop, 4, "ab");
  Request ended = request;
  ended.tokens_max = 9;
  ended.continued[2] = end_token;
  ends(ended, Finish::stop, 3, "ab");
  ended.tokens_min = 3;
  ended.continued.push_back(end_token);
  ends(ended, Finish::stop, 6, "abde");
  Request half = request;
  half.continued[4] = 0xe2;
  ends(half, Finish::length, 5, "abcd\xef\xbf\xbd");
  CHECK(running.recorder.told(other).end() == nullptr);
  running.engine->cancel(other);
  running.recorder.finished(other);
  CHECK_EQUAL(running.engine->stats().running + running.engine->stats().waiting, 0);
}

// What its reader has belongs to the answer, however short the rest of its life is.
TEST("who is cancelled in the queue was told what it brought") {
  TinyEngine running({.context_tokens = 1 << 16, .slots = 1}, {.layers = 1, .context = 1 << 16});
  const uint32_t other = running.submit({.prompt = {1}, .tokens_max = 60000});
  running.recorder.wait(other, [](const Told& told) { return !told.ids().empty(); });
  const uint32_t waiting = running.submit({.prompt = {1}, .continued = {'a', 'b'}, .tokens_max = 5});
  running.recorder.wait(waiting, [](const Told& told) { return told.events.size() == 2; });
  running.engine->cancel(waiting);
  const Told told = running.recorder.finished(waiting);
  test::check_order(told);
  CHECK(told.events.size() == 3 && told.events[1].kind == EventKind::queued, told.events.size());
  CHECK_EQUAL(told.text(), std::string("ab"));
  CHECK(told.end()->finish == Finish::cancelled && told.end()->seq == 2, told.end()->seq);
  // Likewise whoever is cancelled before the engine has looked at it.
  for (int round = 0; round < 50; round++) {
    const uint32_t early = running.submit({.prompt = {1}, .continued = {'a', 'b'}, .tokens_max = 5});
    running.engine->cancel(early);
    CHECK_EQUAL(running.recorder.finished(early).text(), std::string("ab"));
  }
  running.engine->cancel(other);
  running.recorder.finished(other);
}

TEST("more tokens than one record can count are brought as several") {
  TinyEngine running({.context_tokens = 1 << 18}, {.layers = 1, .context = 1 << 18});
  const Tokens answer = running.random.tokens(150'000, 128);  // of ASCII: none waits for another
  const Told told = running.ask({.prompt = {1}, .continued = answer, .tokens_max = 150'000, .ignores_end = true});
  test::check_order(told);
  CHECK_EQUAL(told.events.size(), size_t{4});
  for (const Event& event : told.events) CHECK(event.ids.size() <= event_ids_max, event.ids.size());
  CHECK(told.ids() == answer && told.end()->finish == Finish::length);
}

TEST("what was brought counts among the tokens computed, and not twice") {
  TinyEngine running({.prefix_cache = false});
  running.ask({.prompt = {1, 2, 3}, .continued = {4, 5}, .tokens_max = 6});
  running.engine->close();
  CHECK_EQUAL(running.engine->stats().prompt_tokens, uint64_t{5});
  CHECK_EQUAL(running.engine->stats().tokens, uint64_t{4});
}

TEST("what cannot be continued is refused with what is wrong") {
  struct Any final : Grammar {
    std::unique_ptr<Constraint> begin() const override { return nullptr; }
    size_t bytes() const override { return 0; }
  };
  TinyEngine running;
  const Request request{.prompt = {1}, .continued = {1, 2, 3}, .tokens_max = 4};
  Request wrong = request;
  wrong.continued[1] = 260;
  CHECK_EQUAL(running.refusal(wrong), std::string("token 260, with which the answer is continued, is not in the vocabulary of 260"));
  wrong.continued[1] = -1;
  CHECK_EQUAL(running.refusal(wrong), std::string("token -1, with which the answer is continued, is not in the vocabulary of 260"));
  wrong = request;
  wrong.tokens_max = 2;
  CHECK_EQUAL(running.refusal(wrong), std::string("the answer is continued with 3 tokens, but may have at most 2"));
  wrong = request;
  wrong.grammar = std::make_shared<Any>();
  CHECK_EQUAL(running.refusal(wrong), std::string("a format derives an answer from its first token on; continue none beside it"));
  CHECK(running.ask(request).end()->finish == Finish::length);
}
