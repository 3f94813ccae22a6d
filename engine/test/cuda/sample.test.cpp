// Sampling on the GPU: chooses what the processor's sampler chooses, save that its draws walk the candidates in the order of their ids; a
// sample's result has the same bits whatever else is in the step.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "constrain/grammar.h"
#include "sample/logprobs.h"
#include "sample/random.h"
#include "sample/sampler.h"
#include "sample_case.h"
#include "support/random.h"

using namespace millrace;
using millrace::test::Given, millrace::test::Outcome, millrace::test::Random;

namespace {

constexpr float impossible = -std::numeric_limits<float>::infinity();
constexpr float no_number = std::numeric_limits<float>::quiet_NaN();
constexpr int vocabularies[] = {16, 300, 1001, 49152, 128256, 262144};

void need_gpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) throw test::Skipped{"there is no GPU"};
}

// What the processor's sampler makes of the logits, but for the draw.
std::vector<float> adjusted_of(const Given& given) {
  std::vector<float> logits = given.logits;
  for (const StepBias& each : given.biases) logits[static_cast<size_t>(each.token)] += each.bias;
  std::vector<int> prompt(logits.size()), generated(logits.size());
  for (size_t i = 0; i < given.history.size(); i++) (static_cast<int>(i) < given.sample.generated_from ? prompt : generated)[static_cast<size_t>(given.history[i])]++;
  for (size_t t = 0; t < logits.size(); t++) {
    if (prompt[t] + generated[t] > 0) logits[t] = logits[t] > 0 ? logits[t] / given.sample.repetition_penalty : logits[t] * given.sample.repetition_penalty;
    if (generated[t] > 0) logits[t] -= given.sample.presence_penalty + given.sample.frequency_penalty * static_cast<float>(generated[t]);
  }
  for (const int32_t token : given.barred) logits[static_cast<size_t>(token)] = impossible;
  for (size_t t = 0; t < logits.size(); t++)
    if (std::isnan(logits[t]) || (!given.mask.empty() && (given.mask[t / 32] >> t % 32 & 1) == 0)) logits[t] = impossible;
  return logits;
}

struct Kept {
  int32_t token;
  float weight;
};

// What top-k, top-p and min-p leave, by their definitions, in the order of ids.
std::vector<Kept> kept_of(const std::vector<float>& logits, const StepSample& sample) {
  const float highest = *std::max_element(logits.begin(), logits.end()), inverse = 1 / sample.temperature;
  std::vector<Kept> kept;
  for (size_t t = 0; t < logits.size(); t++) {
    const float weight = logits[t] == highest ? 1 : std::exp((logits[t] - highest) * inverse);
    if (weight >= 0x1p-24f) kept.push_back({static_cast<int32_t>(t), weight});
  }
  std::stable_sort(kept.begin(), kept.end(), [](const Kept& a, const Kept& b) { return a.weight > b.weight; });
  if (sample.top_k > 0 && kept.size() > static_cast<size_t>(sample.top_k)) kept.resize(static_cast<size_t>(sample.top_k));
  if (sample.top_p < 1) {
    double total = 0, sum = 0;
    for (const Kept& each : kept) total += each.weight;
    size_t count = 0;
    while (count < kept.size() && (count == 0 || sum < sample.top_p * total)) sum += kept[count++].weight;
    kept.resize(count);
  }
  while (kept.size() > 1 && kept.back().weight < sample.min_p) kept.pop_back();
  std::sort(kept.begin(), kept.end(), [](const Kept& a, const Kept& b) { return a.token < b.token; });
  return kept;
}

// Whether the draw falls on this token, or so near its end that rounding may have moved it there. Of many candidates two of all but equal
// weight may have changed places at the cut.
bool falls_on(const std::vector<Kept>& kept, double u, int32_t token) {
  double total = 0, before = 0, least = 1;
  for (const Kept& each : kept) total += each.weight, least = std::min<double>(least, each.weight);
  const double near = 1e-5 + (kept.size() > 1000 ? 2 * least / total : 0);
  for (const Kept& each : kept) {
    const double after = before + each.weight;
    if (each.token == token) return u >= before / total - near && u <= after / total + near;
    before = after;
  }
  return false;
}

bool is_drawn(const Given& given, int32_t token) {
  const std::vector<float> logits = adjusted_of(given);
  const double u = uniform(given.sample.seed, given.history.size());
  if (falls_on(kept_of(logits, given.sample), u, token)) return true;
  if (given.sample.top_p >= 1) return false;
  // The mass that top-p asks for may be reached a token earlier or later by rounding.
  for (const float factor : {1 - 2e-6f, 1 + 2e-6f}) {
    StepSample moved = given.sample;
    moved.top_p *= factor;
    if (falls_on(kept_of(logits, moved), u, token)) return true;
  }
  return false;
}

int32_t likeliest(const std::vector<float>& logits) { return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()); }

enum class Shape { normal, wide, flat, peaked, ties, holes };
std::vector<float> logits_of(Random& random, int vocabulary, Shape shape) {
  const float scale = shape == Shape::wide ? 6.0f : 2.0f;
  std::vector<float> logits(static_cast<size_t>(vocabulary), 1.5f);
  for (float& logit : logits) {
    if (shape != Shape::flat) logit = scale * random.normal();
    if (shape == Shape::ties) logit = std::round(2 * logit) / 2;
    if (shape == Shape::holes && random.chance(0.3)) logit = random.chance(0.5) ? no_number : impossible;
  }
  if (shape == Shape::peaked) logits[static_cast<size_t>(random.between(0, vocabulary - 1))] = 30;
  if (shape == Shape::holes) logits[static_cast<size_t>(random.between(0, vocabulary - 1))] = 1;
  return logits;
}

// Biases, penalties, barred tokens and a mask, each or not.
void adjust_at_random(Random& random, Given& given) {
  const int vocabulary = static_cast<int>(given.logits.size());
  given.history = random.tokens(random.between(1, 3000), std::min(vocabulary, 5000));
  for (size_t i = 0; i < given.history.size(); i += 3) given.history[i] = random.between(0, vocabulary - 1);
  given.sample.generated_from = random.between(0, static_cast<int>(given.history.size()));
  if (random.chance(0.5)) given.sample.repetition_penalty = static_cast<float>(0.5 + random.uniform() * 1.5);
  if (random.chance(0.5)) given.sample.presence_penalty = 2 * random.normal();
  if (random.chance(0.5)) given.sample.frequency_penalty = random.normal();
  if (random.chance(0.5))
    for (int i = random.between(1, 600); i > 0; i--) given.biases.push_back({random.between(0, vocabulary - 1), 3 * random.normal()});
  if (random.chance(0.5)) given.barred = random.tokens(random.between(1, vocabulary / 3), vocabulary);
  if (random.chance(0.5)) {
    given.mask.resize(static_cast<size_t>(vocabulary + 31) / 32);
    for (uint32_t& word : given.mask) word = static_cast<uint32_t>(random.next()) & static_cast<uint32_t>(random.next());
  }
}

void filter_at_random(Random& random, Given& given) {
  StepSample& sample = given.sample;
  const int vocabulary = static_cast<int>(given.logits.size());
  sample.temperature = static_cast<float>(std::exp(std::log(0.05) + random.uniform() * std::log(200.0)));
  if (random.chance(0.5)) sample.top_k = random.chance(0.7) ? random.between(1, std::min(vocabulary, 100)) : random.between(1, vocabulary);
  if (random.chance(0.5)) sample.top_p = static_cast<float>(random.uniform());
  if (random.chance(0.3)) sample.min_p = static_cast<float>(random.uniform() * random.uniform());
  sample.seed = random.next();
}

}  // namespace

TEST("greedy takes the likeliest, of equals the lower id, and what is no number never") {
  need_gpu();
  Random random;
  for (const int vocabulary : vocabularies) {
    std::vector<Given> all;
    for (const Shape shape : {Shape::normal, Shape::ties, Shape::flat, Shape::peaked, Shape::holes}) all.push_back({.logits = logits_of(random, vocabulary, shape)});
    all.push_back({.logits = std::vector<float>(static_cast<size_t>(vocabulary), impossible)});
    all.push_back({.logits = std::vector<float>(static_cast<size_t>(vocabulary), no_number)});
    all.push_back({.logits = std::vector<float>(static_cast<size_t>(vocabulary), -0.0f)});
    all.back().logits.back() = 0.0f;
    all.push_back(all[0]);
    all.back().sample.temperature = 1, all.back().sample.top_k = 1;
    all.push_back(all[6]);
    all.back().sample.temperature = 1;  // nothing is possible: nothing to draw
    const std::vector<Outcome> outcomes = test::run_samples(all, 3);
    for (size_t i = 0; i < all.size(); i++) CHECK_EQUAL(outcomes[i].result.token, likeliest(adjusted_of(all[i])));
  }
}

// Biases, penalties, barred tokens and masks are those of the processor's sampler, to the bit.
TEST("adjusted logits are the processor's") {
  need_gpu();
  Random random;
  for (const int vocabulary : vocabularies) {
    std::vector<Given> all;
    for (int i = 0; i < 24; i++) {
      all.push_back({.logits = logits_of(random, vocabulary, i % 2 == 0 ? Shape::normal : Shape::ties)});
      adjust_at_random(random, all.back());
      if (i >= 12) all.back().sample.temperature = 1;
    }
    const std::vector<Outcome> outcomes = test::run_samples(all);
    for (size_t i = 0; i < all.size(); i++) {
      const Given& given = all[i];
      if (i >= 12) {
        if (given.is_adjusted()) CHECK(outcomes[i].adjusted == adjusted_of(given), "vocabulary ", vocabulary);
        continue;
      }
      SamplingOptions options;
      options.repetition_penalty = given.sample.repetition_penalty, options.presence_penalty = given.sample.presence_penalty, options.frequency_penalty = given.sample.frequency_penalty;
      for (const StepBias& each : given.biases) options.bias.push_back({each.token, each.bias});
      const auto answer = given.history.begin() + given.sample.generated_from;
      Sampler sampler(options, std::vector<int32_t>(given.history.begin(), answer));
      std::for_each(answer, given.history.end(), [&](int32_t token) { sampler.accept(token); });
      sampler.bar(given.barred, std::numeric_limits<int>::max());
      TokenMask mask(vocabulary);
      std::copy(given.mask.begin(), given.mask.end(), mask.bits());
      if (!given.mask.empty()) sampler.allow(&mask);
      std::vector<float> logits = given.logits;
      CHECK_EQUAL(outcomes[i].result.token, sampler.sample(logits, given.history.size()));
    }
  }
}

TEST("a drawn token is the one that the definitions give") {
  need_gpu();
  Random random;
  for (const int vocabulary : vocabularies)
    for (int round = 0; round < (vocabulary < 2000 ? 20 : 2); round++) {
      std::vector<Given> all;
      const int count = random.between(1, 64);
      for (int i = 0; i < count; i++) {
        all.push_back({.logits = i < 8 ? logits_of(random, vocabulary, static_cast<Shape>(random.between(0, 5))) : all[static_cast<size_t>(random.between(0, i - 1))].logits});
        filter_at_random(random, all.back());
        if (random.chance(0.3)) adjust_at_random(random, all.back());
        if (random.chance(0.2)) all.back().sample.temperature = 0;
      }
      const std::vector<Outcome> outcomes = test::run_samples(all, round % 3);
      for (size_t i = 0; i < all.size(); i++) {
        const StepSample& sample = all[i].sample;
        const int32_t token = outcomes[i].result.token;
        const std::vector<float> logits = adjusted_of(all[i]);
        const bool is_greedy = sample.temperature <= 0 || sample.top_k == 1 || logits[static_cast<size_t>(likeliest(logits))] == impossible;
        CHECK(is_greedy ? token == likeliest(logits) : is_drawn(all[i], token), "vocabulary ", vocabulary, " token ", token, " temperature ", sample.temperature,
              " top_k ", sample.top_k, " top_p ", sample.top_p, " min_p ", sample.min_p);
      }
    }
}

// All weights are equal, so that every cut lies among ties: exactly the lowest ids stay.
TEST("of equal candidates the lowest ids stay") {
  need_gpu();
  Random random;
  for (const int vocabulary : vocabularies) {
    std::vector<Given> all;
    for (int i = 0; i < 48; i++) {
      all.push_back({.logits = logits_of(random, vocabulary, Shape::flat)});
      StepSample& sample = all.back().sample;
      sample.temperature = 2, sample.seed = random.next();
      if (i % 3 != 0) sample.top_k = random.between(2, vocabulary);
      if (i % 3 != 1) sample.top_p = static_cast<float>(random.uniform());
      if (i < 2) sample.top_k = i + 2, sample.top_p = 0.5f;  // of two candidates one stays, of three two
    }
    const std::vector<Outcome> outcomes = test::run_samples(all);
    for (size_t i = 0; i < all.size(); i++) {
      const std::vector<Kept> kept = kept_of(all[i].logits, all[i].sample);
      CHECK(falls_on(kept, uniform(all[i].sample.seed, 0), outcomes[i].result.token), "vocabulary ", vocabulary, " kept ", kept.size(), " token ", outcomes[i].result.token);
    }
  }
}

TEST("a sample has the same bits alone, in company and again") {
  need_gpu();
  Random random;
  for (const int vocabulary : {300, 128256}) {
    std::vector<Given> all;
    for (int i = 0; i < 40; i++) {
      all.push_back({.logits = logits_of(random, vocabulary, static_cast<Shape>(i % 6))});
      filter_at_random(random, all.back());
      if (random.chance(0.5)) adjust_at_random(random, all.back());
      if (random.chance(0.5)) all.back().sample.flags = logprobs_flag, all.back().sample.logprobs = random.between(0, 20);
    }
    const std::vector<Outcome> first = test::run_samples(all), again = test::run_samples(all, 5);
    for (size_t i = 0; i < all.size(); i++) {
      const Outcome alone = test::run_samples({all[i]})[0];
      CHECK(std::memcmp(&first[i].result, &again[i].result, sizeof(SampleResult)) == 0);
      CHECK(std::memcmp(&first[i].result, &alone.result, sizeof(SampleResult)) == 0);
    }
  }
}

// Its own seed: the statistic is the same in every run. Of 7 degrees of freedom 99.9% stay below 24.3.
TEST("tokens are drawn as often as they weigh") {
  need_gpu();
  const int tokens[] = {0, 7, 63, 64, 130, 200, 298, 299};
  Given given{.logits = std::vector<float>(300, impossible)};
  double total = 0, chi_square = 0;
  for (int i = 0; i < 8; i++) given.logits[static_cast<size_t>(tokens[i])] = 0.4f * static_cast<float>(i), total += std::exp(0.4 * i);
  given.sample.temperature = 1, given.sample.seed = 42;
  std::vector<int> seen(300);
  for (int first = 0; first < 4096; first += 256) {
    std::vector<Given> all(256, given);
    for (int i = 0; i < 256; i++) all[static_cast<size_t>(i)].history.resize(static_cast<size_t>(first + i));
    for (const Outcome& each : test::run_samples(all)) seen[static_cast<size_t>(each.result.token)]++;
  }
  int all_seen = 0;
  for (int i = 0; i < 8; i++) {
    const double expected = 4096 * std::exp(0.4 * i) / total, count = seen[static_cast<size_t>(tokens[i])];
    chi_square += (count - expected) * (count - expected) / expected;
    all_seen += seen[static_cast<size_t>(tokens[i])];
  }
  CHECK_EQUAL(all_seen, 4096);
  CHECK(chi_square < 24.3, chi_square);
}

TEST("log-probabilities are of the logits as they came") {
  need_gpu();
  Random random;
  for (const int vocabulary : vocabularies) {
    std::vector<Given> all;
    for (int i = 0; i < 18; i++) {
      all.push_back({.logits = logits_of(random, vocabulary, static_cast<Shape>(i % 6))});
      all.back().sample.flags = logprobs_flag, all.back().sample.logprobs = i == 0 ? 0 : random.between(1, std::min(vocabulary, step_logprobs_max));
      if (i % 2 == 0) filter_at_random(random, all.back());
      if (i % 3 == 0) adjust_at_random(random, all.back());
    }
    all.push_back(all.back());
    all.back().logits.assign(static_cast<size_t>(vocabulary), no_number);
    const std::vector<Outcome> outcomes = test::run_samples(all);
    for (size_t i = 0; i < all.size(); i++) {
      const SampleResult& result = outcomes[i].result;
      const std::vector<TokenLogprob> expected = logprobs_of(all[i].logits, result.token, all[i].sample.logprobs);
      for (size_t n = 0; n < expected.size(); n++) {
        if (n > 0) CHECK_EQUAL(result.ids[n - 1], expected[n].token);
        CHECK(result.logprobs[n] == expected[n].logprob || std::fabs(result.logprobs[n] - expected[n].logprob) < 1e-4, result.logprobs[n], ", not ", expected[n].logprob);
      }
    }
  }
}
