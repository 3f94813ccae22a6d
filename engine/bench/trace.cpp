#include "trace.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "random.h"

namespace millrace::bench {
namespace {

// Of the trace, every 5 percent.
constexpr std::array<double, 21> prompt_quantiles = {2,    181,  207,  372,  387,  396,  403,  414,  703,  984,  1020,
                                                     1045, 1071, 1097, 1130, 1189, 1315, 1876, 2734, 4083, 14050};
// Of the answers to each fifth of the prompts: at 0, 5, 25, 50, 75, 95, 99 and 100 percent.
constexpr std::array<double, 8> answer_levels = {0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1};
constexpr double answer_quantiles[5][8] = {{7, 16, 69, 104, 167, 217, 260, 1000},
                                           {7, 73, 88, 97, 111, 148, 184, 1000},
                                           {7, 76, 385, 399, 421, 532, 638, 1000},
                                           {7, 80, 378, 399, 424, 549, 652, 1000},
                                           {7, 34, 51, 78, 119, 203, 407, 1000}};
constexpr int answer_tokens_max = 1024;      // what every request declares
constexpr double rate_deviation = 0.25, rate_memory_s = 30, rate_every_s = 1;
constexpr int tenants = 8;

double between(double low, double high, double part) { return low + (high - low) * part; }

int prompt_at(double level) {
  const double at = level * (prompt_quantiles.size() - 1);
  const auto below = std::min(static_cast<size_t>(at), prompt_quantiles.size() - 2);
  // The last step spans a factor of three and more, most of it near its start.
  if (below == prompt_quantiles.size() - 2) return static_cast<int>(prompt_quantiles[below] * std::pow(prompt_quantiles[below + 1] / prompt_quantiles[below], std::pow(at - static_cast<double>(below), 6)));
  return static_cast<int>(between(prompt_quantiles[below], prompt_quantiles[below + 1], at - static_cast<double>(below)));
}

int answer_at(double prompt_level, double level) {
  const double* quantiles = answer_quantiles[std::min(4, static_cast<int>(prompt_level * 5))];
  size_t i = 0;
  while (i + 2 < answer_levels.size() && level >= answer_levels[i + 1]) i++;
  return static_cast<int>(between(quantiles[i], quantiles[i + 1], (level - answer_levels[i]) / (answer_levels[i + 1] - answer_levels[i])));
}

Submission any_request(Random& random, const TraceOptions& options, double prompt_level) {
  Submission asked{.prompt_tokens = prompt_at(prompt_level), .tokens_max = answer_tokens_max};
  const double part = random.uniform();
  const int which = part < options.class_shares[0] ? 0 : part < options.class_shares[0] + options.class_shares[1] ? 1 : 2;
  asked.service = static_cast<ServiceClass>(which);
  asked.deadlines = options.deadlines[which];
  // Tenant k asks half as often as tenant k - 1.
  asked.tenant = static_cast<uint32_t>(std::min(tenants - 1.0, -std::log2(1 - random.uniform())));
  return asked;
}

}  // namespace

std::vector<Arrival> make_trace(const TraceOptions& options) {
  Random random(options.seed);
  std::vector<Arrival> trace;
  const double kept = std::exp(-rate_every_s / rate_memory_s);
  double wander = random.normal(), at_s = 0;
  const double lasts_s = static_cast<double>(options.lasts_us) / 1e6;
  for (double from_s = 0; from_s < lasts_s; from_s += rate_every_s) {
    wander = kept * wander + std::sqrt(1 - kept * kept) * random.normal();
    const double rate = options.requests_per_s * std::exp(rate_deviation * wander - 0.5 * rate_deviation * rate_deviation);
    for (at_s = from_s - std::log(1 - random.uniform()) / rate; at_s < from_s + rate_every_s; at_s += -std::log(1 - random.uniform()) / rate) {
      const double prompt_level = random.uniform();
      Arrival arrival{.at_us = static_cast<int64_t>(at_s * 1e6), .asked = any_request(random, options, prompt_level)};
      arrival.length = answer_at(prompt_level, random.uniform());
      trace.push_back(arrival);
    }
  }
  return trace;
}

}  // namespace millrace::bench
