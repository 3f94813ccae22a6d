// What a request may ask of its answer: log-probabilities, bias, when it may end; and how what it may not ask is refused.
#include <algorithm>
#include <cmath>

#include "engine.h"
#include "format/vocabulary.h"
#include "support/test.h"
#include "support/tiny_engine.h"

using namespace millrace;
using test::TinyEngine;
using test::Told;

// Against teacher-forced logits: what is told of each token is what the model said at its place, stop strings and held text or not.
TEST("each released token comes with its own log-probabilities") {
  TinyEngine asked({}, {.vocabulary = 256});
  const std::vector<int32_t> prompt = asked.random.tokens(7, 256);
  const Told told = asked.ask({.prompt = prompt, .tokens_max = 60, .sampling = {.temperature = 3, .seed = 5, .logprobs = 3}, .stops = {"never said by chance"}});
  const std::vector<int32_t> ids = told.ids();
  REQUIRE(ids.size() == 60, ids.size());
  for (const Event& event : told.events) CHECK_EQUAL(event.logprobs.size(), 4 * event.ids.size());
  std::vector<int32_t> tokens = prompt;
  tokens.insert(tokens.end(), ids.begin(), ids.end() - 1);
  auto logits = asked.engine->evaluate(tokens, 64);
  REQUIRE(logits.ok(), logits.message());
  const std::vector<TokenLogprob> each = told.logprobs();
  for (size_t i = 0; i < ids.size(); i++) {
    const float* row = logits.value().data() + (prompt.size() - 1 + i) * 256;
    double total = 0;
    for (int id = 0; id < 256; id++) total += std::exp(static_cast<double>(row[id]));
    CHECK_EQUAL(each[4 * i].token, ids[i]);
    CHECK_EQUAL(each[4 * i + 1].token, static_cast<int32_t>(std::max_element(row, row + 256) - row));
    for (size_t rank = 0; rank < 4; rank++)
      CHECK(std::abs(each[4 * i + rank].logprob - (row[each[4 * i + rank].token] - std::log(total))) < 1e-4, "token ", i, " rank ", rank);
  }
}

TEST("log-probabilities, bias and the least length are the same beside other answers as alone") {
  TinyEngine asked;
  std::vector<Request> requests;
  for (int i = 0; i < 8; i++) {
    Request request{.prompt = asked.random.tokens(asked.random.between(1, 60), 256), .tokens_max = 30, .tokens_min = 3 * i,
                    .sampling = {.temperature = 2, .seed = static_cast<uint64_t>(i), .logprobs = i, .bias = {{259, 3}, {40 + i, 2.5f}}}};
    request.ignores_end = i % 4 == 3;
    requests.push_back(request);
  }
  std::vector<Told> alone;
  for (const Request& request : requests) alone.push_back(asked.ask(request));
  std::vector<uint32_t> ids;
  for (const Request& request : requests) ids.push_back(asked.submit(request));
  for (size_t i = 0; i < ids.size(); i++) {
    const Told told = asked.recorder.finished(ids[i]);
    CHECK_EQUAL(told.ids(), alone[i].ids());
    const auto ours = told.logprobs(), theirs = alone[i].logprobs();
    REQUIRE(ours.size() == theirs.size(), ours.size(), " and ", theirs.size());
    for (size_t k = 0; k < ours.size(); k++) CHECK(ours[k].token == theirs[k].token && ours[k].logprob == theirs[k].logprob, "entry ", k);
  }
}

// With the end token forced at every place, the answer ends as soon as it may.
TEST("an answer ends of itself right after its least length, and never where the end is ignored") {
  TinyEngine asked;
  const Request request{.prompt = {1, 2, 3}, .tokens_max = 40, .sampling = {.bias = {{259, 100}}}};
  for (const int least : {0, 1, 17, 40}) {
    Request each = request;
    each.tokens_min = least;
    const Told told = asked.ask(each);
    const std::vector<int32_t> ids = told.ids();
    CHECK_EQUAL(ids.size(), static_cast<size_t>(least));
    CHECK(std::find(ids.begin(), ids.end(), 259) == ids.end());
    CHECK(told.end()->finish == (least == 40 ? Finish::length : Finish::stop));
    CHECK_EQUAL(told.end()->seq, static_cast<uint32_t>(std::min(least + 1, 40)));
  }
  Request ignoring = request;
  ignoring.ignores_end = true;
  const Told told = asked.ask(ignoring);
  CHECK(told.end()->finish == Finish::length);
  CHECK_EQUAL(told.ids(), std::vector<int32_t>(40, 259));
  CHECK_EQUAL(told.text(), std::string());
}

TEST("of several stop strings the first to come counts, and none before the least length") {
  TinyEngine asked({}, {.vocabulary = 256});
  Request request{.prompt = {1}, .tokens_max = 12, .sampling = {.bias = {{'a', 100}}}, .stops = {"zz", "aaaa", "aaaaaa"}};
  CHECK_EQUAL(asked.ask(request).text(), std::string());
  request.tokens_min = 5;
  const Told told = asked.ask(request);
  CHECK_EQUAL(told.text(), std::string(5, 'a'));
  CHECK(told.end()->finish == Finish::stop && told.end()->seq == 9, told.end()->seq);
  request.tokens_min = 9;
  CHECK(asked.ask(request).end()->finish == Finish::length);
}

TEST("what cannot be sampled so is refused with its value") {
  TinyEngine asked;
  const Request request{.prompt = {1}, .tokens_max = 4};
  const auto refused = [&](auto change) {
    Request changed = request;
    change(changed);
    return asked.refusal(changed);
  };
  CHECK_EQUAL(refused([](Request& r) { r.tokens_min = 5; }), std::string("at least 5 tokens are asked for, but at most 4"));
  CHECK_EQUAL(refused([](Request& r) { r.sampling.logprobs = 21; }), std::string("the 21 likeliest log-probabilities are asked for; ask for at most 20"));
  CHECK_EQUAL(refused([](Request& r) { r.sampling.bias = {{260, 1}}; }), std::string("token 260 of the logit bias is not in the vocabulary of 260"));
  CHECK_EQUAL(refused([](Request& r) { r.sampling.bias = {{-1, 1}}; }), std::string("token -1 of the logit bias is not in the vocabulary of 260"));
  CHECK_EQUAL(refused([](Request& r) { r.sampling.bias = {{3, NAN}}; }), std::string("the logit bias of token 3 is not a number"));
  CHECK_EQUAL(refused([](Request& r) { r.sampling.bias.resize(1025); }), std::string("the logits of 1025 tokens are biased; bias at most 1024"));
}

TEST("a number that is under way is refused to another request, and free again once it has ended") {
  TinyEngine asked({}, {.layers = 1, .context = 1 << 18});
  const Request request{.id = 7, .prompt = {1}, .tokens_max = 8000};
  CHECK(asked.engine->submit(request).ok());
  CHECK_EQUAL(asked.engine->submit(request).message(), std::string("request 7 is under way already"));
  asked.engine->cancel(7);
  asked.recorder.finished(7);
  Request again = request;
  again.tokens_max = 2;
  CHECK(asked.engine->submit(again).ok());
  asked.recorder.wait(7, [](const Told& told) { return told.end() != nullptr && told.end()->finish == Finish::length; });
}
