// The sampler: what may be drawn, how often it is drawn, and that a draw is a pure function of seed and position.
#include "sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "sample/random.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

int32_t draw(const SamplingOptions& options, std::vector<float> logits, uint64_t position = 0) {
  return Sampler(options, {}).sample(logits, position);
}

// The probabilities after all filters, by their definitions: penalties aside, temperature, then top-k, top-p of what that leaves, min-p
// of the likeliest. Of equal tokens the lower id stands before.
std::map<int32_t, double> filtered(const std::vector<float>& logits, const SamplingOptions& options) {
  struct Each {
    int32_t token;
    double weight;
  };
  std::vector<Each> all;
  const double highest = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < logits.size(); i++) all.push_back({static_cast<int32_t>(i), std::exp((logits[i] - highest) / options.temperature)});
  std::stable_sort(all.begin(), all.end(), [](const Each& a, const Each& b) { return a.weight > b.weight; });
  if (options.top_k > 0 && all.size() > static_cast<size_t>(options.top_k)) all.resize(static_cast<size_t>(options.top_k));
  double total = 0, kept = 0;
  for (const Each& each : all) total += each.weight;
  std::map<int32_t, double> chosen;
  double mass = 0;
  for (const Each& each : all) {
    if (!chosen.empty() && (kept >= options.top_p * total || each.weight < options.min_p)) break;
    chosen[each.token] = each.weight;
    kept += each.weight;
    mass += each.weight;
  }
  for (auto& [token, weight] : chosen) weight /= mass;
  return chosen;
}

std::vector<float> random_logits(test::Random& random, int count, float spread) {
  std::vector<float> logits = random.normals(count);
  for (float& logit : logits) logit *= spread;
  return logits;
}

}  // namespace

TEST("greedy takes the likeliest, of equals the lowest id") {
  CHECK_EQUAL(draw({}, {1, 3, 2}), 1);
  CHECK_EQUAL(draw({}, {2, 7, 7, 7}), 1);
  CHECK_EQUAL(draw({}, {5, 5}), 0);
  CHECK_EQUAL(draw({.temperature = 2, .top_k = 1}, {0, 4, 4}), 1);
  CHECK_EQUAL(draw({.temperature = 1e-20f}, {0, 4, 3}), 1);
  test::Random random;
  for (int round = 0; round < 200; round++) {
    const std::vector<float> logits = random_logits(random, 300, 3);
    CHECK_EQUAL(draw({}, logits), static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  }
}

TEST("what is drawn is always among what top-k, top-p and min-p leave") {
  test::Random random;
  for (int round = 0; round < 400; round++) {
    SamplingOptions options{.temperature = 0.1f + 2 * static_cast<float>(random.uniform())};
    if (random.chance(0.5)) options.top_k = random.between(1, 40);
    if (random.chance(0.5)) options.top_p = static_cast<float>(random.uniform());
    if (random.chance(0.5)) options.min_p = static_cast<float>(random.uniform()) * 0.5f;
    options.seed = random.next();
    const std::vector<float> logits = random_logits(random, 200, 2);
    // A hair's breadth on either side of top-p's and min-p's edge is float32's to decide.
    SamplingOptions wider = options;
    wider.top_p = std::min(1.0f, options.top_p * 1.00001f + 1e-6f);
    wider.min_p = options.min_p * 0.99999f;
    const auto allowed = filtered(logits, wider);
    for (uint64_t position = 0; position < 50; position++) {
      const int32_t token = draw(options, logits, position);
      CHECK(allowed.contains(token), "token ", token, " of ", allowed.size(), " allowed; top-k ", options.top_k, " top-p ", options.top_p, " min-p ", options.min_p);
    }
  }
}

TEST("all that is left is drawn sooner or later, and nothing more") {
  const std::vector<float> logits = {2, 1.9f, 1.8f, 1.7f, -1, -2, -3};
  struct Each {
    SamplingOptions options;
    std::set<int32_t> right;
  };
  for (const Each& each : {Each{{.temperature = 1, .top_k = 3}, {0, 1, 2}}, Each{{.temperature = 1, .top_p = 0.3f}, {0, 1}},
                           Each{{.temperature = 1, .min_p = 0.6f}, {0, 1, 2, 3}}, Each{{.temperature = 1, .top_p = 0}, {0}}}) {
    std::set<int32_t> drawn;
    for (uint64_t position = 0; position < 500; position++) drawn.insert(draw(each.options, logits, position));
    CHECK(drawn == each.right, drawn.size(), " tokens were drawn");
  }
}

// Chi-square over fixed seeds, so that the test cannot fail by chance: 12 tokens, 99.9% of right samplers stay below 31.3.
TEST("tokens are drawn as often as their probabilities say") {
  test::Random random(20240917);
  for (const float temperature : {0.5f, 1.0f, 1.7f}) {
    const std::vector<float> logits = random_logits(random, 12, 1);
    const SamplingOptions options{.temperature = temperature, .seed = 42};
    const auto right = filtered(logits, options);
    std::vector<int> counts(12);
    constexpr int draws = 20000;
    for (uint64_t position = 0; position < draws; position++) counts[static_cast<size_t>(draw(options, logits, position))]++;
    double chi_square = 0;
    for (const auto& [token, probability] : right) {
      const double expected = probability * draws, seen = counts[static_cast<size_t>(token)];
      chi_square += (seen - expected) * (seen - expected) / expected;
    }
    CHECK(chi_square < 31.3, "temperature ", temperature, ": ", chi_square);
  }
}

TEST("draws at neighbouring positions and seeds are independent and uniform") {
  int counts[10][10] = {};
  for (uint64_t seed = 0; seed < 100; seed++)
    for (uint64_t position = 0; position < 200; position++) {
      const double value = uniform(seed, position);
      REQUIRE(value >= 0 && value < 1, value);
      counts[static_cast<int>(value * 10)][static_cast<int>(uniform(seed, position + 1) * 10)]++;
    }
  double chi_square = 0;  // 100 cells of 200 each: 99.9% stay below 148.2
  for (const auto& row : counts)
    for (const int count : row) chi_square += (count - 200.0) * (count - 200.0) / 200;
  CHECK(chi_square < 148.2, chi_square);
}

TEST("the same seed and position draw the same token, others another") {
  test::Random random;
  const std::vector<float> logits = random_logits(random, 1000, 0.1f);
  std::set<int32_t> over_positions, over_seeds;
  for (uint64_t i = 0; i < 30; i++) {
    const SamplingOptions options{.temperature = 1, .seed = 7};
    CHECK_EQUAL(draw(options, logits, i), draw(options, logits, i));
    over_positions.insert(draw(options, logits, i));
    over_seeds.insert(draw({.temperature = 1, .seed = i}, logits, 5));
  }
  CHECK(over_positions.size() > 20 && over_seeds.size() > 20, over_positions.size(), " and ", over_seeds.size());
}

TEST("the repetition penalty lowers what prompt and answer had, whatever the sign") {
  const std::vector<int32_t> prompt = {0, 1};
  Sampler sampler({.repetition_penalty = 2}, prompt);
  std::vector<float> logits = {4, -4, 3, -3};
  sampler.sample(logits, 0);
  CHECK_EQUAL(logits, (std::vector<float>{2, -8, 3, -3}));
  sampler.accept(2);
  logits = {4, -4, 3, -3};
  CHECK_EQUAL(sampler.sample(logits, 1), 0);
  CHECK_EQUAL(logits, (std::vector<float>{2, -8, 1.5f, -3}));
}

TEST("presence counts once and frequency each time, in the answer alone") {
  const std::vector<int32_t> prompt = {0};
  Sampler sampler({.presence_penalty = 1, .frequency_penalty = 0.25f}, prompt);
  for (const int32_t token : {1, 1, 2}) sampler.accept(token);
  std::vector<float> logits = {5, 5, 5, 5};
  CHECK_EQUAL(sampler.sample(logits, 0), 0);
  CHECK_EQUAL(logits, (std::vector<float>{5, 3.5f, 3.75f, 5}));
}

TEST("logits that are not numbers still give a token") {
  for (const SamplingOptions& options : {SamplingOptions{}, SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 1, .top_k = 2, .top_p = 0.5f}})
    for (const std::vector<float>& logits : {std::vector<float>(4, NAN), std::vector<float>(4, -INFINITY), std::vector<float>{NAN, 1, INFINITY, -INFINITY}}) {
      const int32_t token = draw(options, logits);
      CHECK(token >= 0 && token < 4, token);
    }
}

TEST("a bias is added before penalties, and can forbid or force a token") {
  const std::vector<int32_t> prompt = {0};
  Sampler sampler({.repetition_penalty = 2, .bias = {{0, 2}, {3, -100}}}, prompt);
  std::vector<float> logits = {4, 1, 2, 50};
  CHECK_EQUAL(sampler.sample(logits, 0), 0);
  CHECK_EQUAL(logits, (std::vector<float>{3, 1, 2, -50}));
  test::Random random;
  for (int round = 0; round < 100; round++) {
    const std::vector<float> any = random_logits(random, 300, 3);
    CHECK_EQUAL(draw({.temperature = 1, .seed = random.next(), .bias = {{17, 100}}}, any), 17);
    CHECK(draw({.temperature = 5, .seed = random.next(), .bias = {{17, -100}}}, any) != 17);
  }
}

TEST("barred tokens are not sampled, whatever their bias, until enough others were") {
  const std::vector<int32_t> ends = {1, 2};
  Sampler sampler({.bias = {{1, 100}}}, {});
  sampler.bar(ends, 2);
  std::vector<int32_t> sampled;
  for (uint64_t position = 0; position < 3; position++) {
    std::vector<float> logits = {1, 0, 5, 0};
    sampled.push_back(sampler.sample(logits, position));
    sampler.accept(sampled.back());
  }
  CHECK_EQUAL(sampled, (std::vector<int32_t>{0, 0, 1}));
}

// By the definition, in double: log of a token's share of the sum of exponentials.
TEST("log-probabilities are the raw logits' log-softmax, the likeliest in falling order and of equals the lower id first") {
  test::Random random;
  for (int round = 0; round < 100; round++) {
    std::vector<float> logits = random_logits(random, random.between(1, 400), 4);
    if (round % 3 == 0)
      for (float& logit : logits) logit = std::round(logit);  // many equals
    const int count = random.between(0, std::min<int>(20, static_cast<int>(logits.size())));
    SamplingOptions options{.temperature = 1.5f, .repetition_penalty = 3, .seed = random.next(), .logprobs = count, .bias = {{0, 5}}};
    const std::vector<int32_t> prompt = {0};
    Sampler sampler(options, prompt);
    std::vector<float> work = logits;
    const int32_t token = sampler.sample(work, 0);
    options.logprobs = -1;
    work = logits;
    CHECK_EQUAL(Sampler(options, prompt).sample(work, 0), token);

    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit));
    const auto right = [&](int32_t id) { return logits[static_cast<size_t>(id)] - std::log(total); };
    std::vector<int32_t> order;
    for (size_t id = 0; id < logits.size(); id++) order.push_back(static_cast<int32_t>(id));
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    const std::vector<TokenLogprob>& told = sampler.logprobs();
    REQUIRE(told.size() == static_cast<size_t>(count) + 1, told.size(), " for ", count);
    CHECK_EQUAL(told[0].token, token);
    for (size_t i = 0; i < told.size(); i++) {
      if (i > 0) CHECK_EQUAL(told[i].token, order[i - 1]);
      CHECK(std::abs(told[i].logprob - right(told[i].token)) < 1e-5 * (1 + std::abs(right(told[i].token))), told[i].logprob, " not ", right(told[i].token));
    }
  }
}

TEST("log-probabilities of what is no distribution are those of the impossible, and none are made where none are asked for") {
  for (const std::vector<float>& logits : {std::vector<float>(4, NAN), std::vector<float>(4, -INFINITY), std::vector<float>{NAN, 1, INFINITY, -INFINITY}}) {
    Sampler sampler({.logprobs = 4}, {});
    std::vector<float> work = logits;
    sampler.sample(work, 0);
    REQUIRE(sampler.logprobs().size() == 5, sampler.logprobs().size());
    for (const TokenLogprob& each : sampler.logprobs()) CHECK_EQUAL(each.logprob, -INFINITY);
  }
  Sampler plain({}, {});
  std::vector<float> logits = {1, 2};
  plain.sample(logits, 0);
  CHECK(plain.logprobs().empty());
}
