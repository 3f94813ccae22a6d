// Requests of the shape of a public trace: the conversations of AzurePublicDataset's AzureLLMInferenceTrace_conv (November 2023, 19,366
// requests in 58 minutes). Prompt lengths follow its quantiles, answer lengths the quantiles of the fifth that the prompt is in (long prompts
// there have short answers), arrivals are Poisson at a rate that wanders as its counts do: over 10 s and over 60 s they deviate by a quarter
// of their mean more than a steady rate would make them. Made from a seed.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule/classes.h"

namespace millrace::bench {

struct Arrival {
  int64_t at_us = 0;
  Submission asked;  // without a number
  int length = 0;    // of the answer, which no policy is told
};

struct TraceOptions {
  uint64_t seed = 1;
  double requests_per_s = 1;
  int64_t lasts_us = 0;
  Deadlines deadlines[service_classes];
  double class_shares[service_classes] = {0.3, 0.5, 0.2};
};

std::vector<Arrival> make_trace(const TraceOptions& options);

}  // namespace millrace::bench
