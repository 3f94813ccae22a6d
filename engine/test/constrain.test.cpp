// Answers that must have a format: what a mask does to the sampler, who computes it and when, and answers by regular expressions and schemas.
#include <atomic>
#include <cctype>
#include <regex>
#include <stdexcept>

#include "constrain/formats.h"
#include "format/json.h"
#include "sample/sampler.h"
#include "support/random.h"
#include "support/recorder.h"
#include "support/test.h"
#include "support/tiny_engine.h"
#include "support/tiny_model.h"

using namespace millrace;
using test::Told;

namespace {

// Allows the tokens of its number's parity, once it was filled; fails on demand.
class Parity final : public Constraint {
 public:
  Parity(int vocabulary, int parity, bool fails = false) : Constraint(vocabulary), parity_(parity), fails_(fails) {}
  std::atomic<int> filled{0};

 private:
  void fill_bits(uint32_t* bits) override {
    if (fails_) throw std::runtime_error("no bits");
    for (size_t word = 0; word < mask().words(); word++) bits[word] = parity_ == 0 ? 0x55555555u : 0xaaaaaaaau;
    filled++;
  }
  bool take(int32_t token) override { return token % 2 == parity_; }

  int parity_;
  bool fails_;
};

struct Constrained : test::TinyEngine {
  Constrained() : TinyEngine({}, {.vocabulary = 300, .end_token = true}) {
    if (!has_grammars()) throw test::Skipped{"the build has no library for constrained output"};
  }
  std::shared_ptr<const Grammar> compile(const Format& format) {
    auto grammar = engine->compile(format);
    REQUIRE(grammar.ok(), grammar.message());
    return grammar.take();
  }
};

}  // namespace

TEST("only what the mask allows is sampled, greedy or not, and bias cannot force the rest") {
  test::Random random;
  for (const int parity : {0, 1}) {
    Parity constraint(101, parity);
    constraint.fill();
    for (int round = 0; round < 200; round++) {
      Sampler sampler({.temperature = round % 2 == 0 ? 0.0f : 2.0f, .seed = random.next(), .logprobs = 1, .bias = {{8, 100}, {9, 100}}}, {});
      sampler.allow(&constraint.mask());
      std::vector<float> logits = random.normals(101);
      const std::vector<float> raw = logits;
      const int32_t token = sampler.sample(logits, static_cast<uint64_t>(round));
      CHECK_EQUAL(token, parity == 0 ? 8 : 9);
      CHECK(constraint.accept(token).ok());
      // The model's own thought, whatever was allowed.
      CHECK_EQUAL(sampler.logprobs()[1].token, static_cast<int32_t>(std::max_element(raw.begin(), raw.end()) - raw.begin()));
    }
    CHECK_EQUAL(constraint.accept(1 - parity).message(), "token " + std::to_string(1 - parity) + " does not fit the format that the answer must have");
  }
}

TEST("masks are filled on another thread, each once a step, and awaited by who needs them") {
  MaskThread masks;
  std::vector<std::unique_ptr<Parity>> all;
  for (int i = 0; i < 12; i++) all.push_back(std::make_unique<Parity>(5000, i % 2));
  for (int step = 1; step <= 300; step++) {
    std::vector<Constraint*> given;
    for (const auto& each : all) given.push_back(each.get());
    masks.begin(given);
    Sampler sampler({}, {});
    const size_t which = static_cast<size_t>(step) % all.size();
    sampler.allow(&all[which]->mask());
    std::vector<float> logits(5000, 1.0f);
    CHECK_EQUAL(sampler.sample(logits, 0), static_cast<int32_t>(which % 2));
    CHECK_EQUAL(all[which]->filled.load(), step);
    masks.finish();
    for (const auto& each : all) CHECK_EQUAL(each->filled.load(), step);
  }
  masks.begin({});
  masks.finish();
}

TEST("a mask that cannot be made lets the step go on, and ends its answer with the reason") {
  MaskThread masks;
  Parity failing(40, 0, true);
  masks.begin({&failing});
  failing.mask().wait();
  masks.finish();
  CHECK_EQUAL(failing.accept(3).message(), std::string("no bits"));
}

TEST("an engine without the library refuses a format by name") {
  if (has_grammars()) throw test::Skipped{"this build has it"};
  test::Random random;
  const test::TemporaryFile path(tiny_model({.end_token = true}, random));
  test::Recorder recorder;
  const auto engine = test::load({.path = path.path(), .threads = 1}, recorder);
  CHECK(!engine->info().has_formats);
  CHECK_EQUAL(engine->compile({.text = "{}"}).status().message(),
              std::string("this engine was built without constrained output; build it with: npm run build -- --formats"));
}

TEST("answers match their regular expression as a whole, the same beside others as alone") {
  Constrained run;
  const std::vector<std::string> patterns = {"[a-f]{3,8}", "(yes|no|never)", "[0-9]{2}-[0-9]{2}", "x*y"};
  std::vector<Request> requests;
  for (int i = 0; i < 24; i++)
    requests.push_back({.prompt = run.random.tokens(run.random.between(1, 40), 256), .tokens_max = 400,
                        .sampling = {.temperature = i % 3 == 0 ? 0.0f : 2.0f, .seed = static_cast<uint64_t>(i), .bias = {{299, 2}}},
                        .grammar = run.compile({Format::Kind::regex, patterns[static_cast<size_t>(i) % patterns.size()]})});
  std::vector<std::string> alone;
  for (size_t i = 0; i < requests.size(); i++) {
    const Told told = run.recorder.finished(run.submit(requests[i]));
    alone.push_back(told.text());
    if (told.end()->finish != Finish::stop) continue;  // x* may go on for ever
    CHECK(std::regex_match(told.text(), std::regex(patterns[i % patterns.size()])), test::show(told.text()), " by ", patterns[i % patterns.size()]);
  }
  for (size_t i = 0; i < 3; i++) CHECK(!alone[i].empty());
  std::vector<uint32_t> ids;
  for (const Request& request : requests) ids.push_back(run.submit(request));
  for (size_t i = 0; i < ids.size(); i++) CHECK_EQUAL(run.recorder.finished(ids[i]).text(), alone[i]);
}

TEST("a schema gives JSON that parses, a grammar what it derives, and both end") {
  Constrained run;
  const auto schema = run.compile({Format::Kind::json_schema,
                                   R"({"type":"object","properties":{"a":{"type":"boolean"},"b":{"enum":["x","y"]}},"required":["a","b"],"additionalProperties":false})"});
  const auto grammar = run.compile({Format::Kind::grammar, "root ::= \"(\" root \")\" | \"z\""});
  for (uint64_t seed = 0; seed < 6; seed++) {
    const Told json = run.recorder.finished(run.submit({.prompt = {1, 2}, .tokens_max = 1000, .sampling = {.temperature = 0.7f, .seed = seed, .bias = {{' ', -9}, {'\n', -9}, {'\t', -9}}}, .grammar = schema}));
    CHECK(json.end()->finish == Finish::stop);
    CHECK(parse_json(json.text()).ok(), test::show(json.text()));
    const Told nested = run.recorder.finished(run.submit({.prompt = {1, 2}, .tokens_max = 1000, .sampling = {.temperature = 2, .seed = seed, .bias = {{'z', 3}}}, .grammar = grammar}));
    CHECK(nested.end()->finish == Finish::stop);
    const std::string text = nested.text();
    CHECK(text == std::string(text.size() / 2, '(') + "z" + std::string(text.size() / 2, ')'), test::show(text));
  }
}

TEST("what is no format is refused with a sentence, and what was compiled is found again") {
  Constrained run;
  for (const Format& format : {Format{Format::Kind::json_schema, "{"}, Format{Format::Kind::json_schema, R"({"type":"nothing"})"}, Format{Format::Kind::regex, "(a"},
                               Format{Format::Kind::grammar, "root ::= nowhere"}, Format{Format::Kind::grammar, ""}}) {
    auto refused = run.engine->compile(format);
    CHECK(!refused.ok() && !refused.message().empty(), format.text);
  }
  const Format format{Format::Kind::regex, "a+"};
  const auto first = run.compile(format);
  CHECK(run.compile(format) == first);
  CHECK(run.compile({Format::Kind::grammar, "root ::= \"a\""}) != first);
  for (int i = 0; i < 80; i++) run.compile({Format::Kind::regex, "b{" + std::to_string(i + 1) + "}"});
  CHECK(run.compile(format) != first);
  Request request{.id = 900, .prompt = {1}, .tokens_max = 5, .tokens_min = 1, .grammar = first};
  CHECK_EQUAL(run.engine->submit(request).message(), std::string("a format says where the answer may end; ask for no least length beside it, and do not ignore the end"));
}
