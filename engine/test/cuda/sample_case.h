// Samples for tests of the GPU's sampling, each with all that belongs to it, and a step that runs them.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "support/test.h"

namespace millrace::test {

// One sample; its sequence is `history`, which ends where the sampled token will stand.
struct Given {
  std::vector<float> logits;
  std::vector<int32_t> history = {};
  std::vector<StepBias> biases = {};
  std::vector<int32_t> barred = {};
  std::vector<uint32_t> mask = {};  // empty: all is allowed
  StepSample sample = {};

  bool has_penalty() const { return sample.repetition_penalty != 1 || sample.presence_penalty != 0 || sample.frequency_penalty != 0; }
  bool is_adjusted() const { return !biases.empty() || !barred.empty() || !mask.empty() || has_penalty(); }
};

struct Outcome {
  SampleResult result;
  std::vector<float> adjusted;
};

// A step's lists. Some samples are padding, and behind the end stand some that the step does not count.
struct SampleLists {
  std::vector<StepSample> samples;
  std::vector<float> logits;     // [samples][vocabulary]
  std::vector<int32_t> history;  // [slots][stride]
  std::vector<int32_t> barred;
  std::vector<StepBias> biases;
  std::vector<uint32_t> masks;
  std::vector<size_t> places;    // of each that was given, among the samples
  size_t stride = 1, slots = 0;
  StepCounts counts;

  SampleLists(const std::vector<Given>& all, int beyond) : slots(all.size() + 3) {
    const size_t vocabulary = all[0].logits.size();
    for (const Given& each : all) stride = std::max(stride, each.history.size() + 5);
    history.resize(slots * stride);
    for (const Given& each : all) {
      if (all.size() > 1 && samples.size() % 3 == 1) add({}, std::vector<float>(vocabulary, std::numeric_limits<float>::quiet_NaN()));
      add(each);
    }
    counts.samples = static_cast<int32_t>(samples.size());
    StepSample stale;
    stale.slot = 0;
    for (int i = 0; i < beyond; i++) add(stale, std::vector<float>(vocabulary));
  }

 private:
  void add(const StepSample& sample, const std::vector<float>& row) {
    samples.push_back(sample);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  void add(const Given& given) {
    StepSample sample = given.sample;
    sample.slot = static_cast<int32_t>(slots - 1 - places.size());
    sample.position = static_cast<int32_t>(given.history.size());
    sample.bias_first = static_cast<int32_t>(biases.size()), sample.bias_count = static_cast<int32_t>(given.biases.size());
    sample.barred_first = static_cast<int32_t>(barred.size()), sample.barred_count = static_cast<int32_t>(given.barred.size());
    sample.mask = static_cast<int32_t>(masks.size() / ((given.logits.size() + 31) / 32));
    sample.flags &= logprobs_flag;
    if (!given.biases.empty()) sample.flags |= bias_flag;
    if (!given.barred.empty()) sample.flags |= barred_flag;
    if (!given.mask.empty()) sample.flags |= mask_flag;
    if (given.has_penalty()) sample.flags |= penalty_flag;
    std::copy(given.history.begin(), given.history.end(), history.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(sample.slot) * stride));
    biases.insert(biases.end(), given.biases.begin(), given.biases.end());
    barred.insert(barred.end(), given.barred.begin(), given.barred.end());
    masks.insert(masks.end(), given.mask.begin(), given.mask.end());
    places.push_back(samples.size());
    add(sample, given.logits);
  }
};

template <typename Value>
DeviceArray<Value> on_device(const std::vector<Value>& values) {
  DeviceArray<Value> array(std::max<size_t>(1, values.size()));
  check(cudaMemcpy(array.get(), values.data(), values.size() * sizeof(Value), cudaMemcpyHostToDevice), "copying a test's input");
  return array;
}

// Runs all in one step.
inline std::vector<Outcome> run_samples(const std::vector<Given>& all, int beyond = 0) {
  const SampleLists lists(all, beyond);
  const auto vocabulary = all[0].logits.size(), count = lists.samples.size();
  const auto counts = on_device(std::vector<StepCounts>{lists.counts});
  const auto samples = on_device(lists.samples);
  const auto biases = on_device(lists.biases);
  const auto barred = on_device(lists.barred), history = on_device(lists.history), last = on_device(std::vector<int32_t>(lists.slots, -1));
  const auto masks = on_device(lists.masks);
  const auto logits = on_device(lists.logits);
  const DeviceArray<float> adjusted(lists.logits.size());
  const PinnedArray<SampleResult> results(count);
  for (size_t i = 0; i < count; i++) {
    results[i] = {};
    results[i].token = -7;
  }
  const DeviceArray<uint8_t> scratch(sample_scratch_bytes(static_cast<int>(count), static_cast<int>(vocabulary)));
  check(cudaMemset(scratch.get(), 0xff, scratch.bytes()), "filling");  // what it held before does not matter

  StepView step;
  step.counts = counts.get(), step.samples = samples.get(), step.biases = biases.get(), step.barred = barred.get();
  step.samples_max = static_cast<int>(count);
  SampleTask task;
  task.logits = logits.get(), task.adjusted = adjusted.get(), task.vocabulary = static_cast<int>(vocabulary);
  task.history = history.get(), task.history_stride = static_cast<int64_t>(lists.stride);
  task.masks = masks.get(), task.mask_words = static_cast<int>((vocabulary + 31) / 32);
  task.last_tokens = last.get(), task.results = results.get(), task.scratch = scratch.get();
  check(cudaDeviceSynchronize(), "preparing");
  sample(cudaStreamPerThread, step, task);
  check(cudaDeviceSynchronize(), "sampling");

  std::vector<Outcome> outcomes;
  std::vector<int32_t> lasts(lists.slots);
  check(cudaMemcpy(lasts.data(), last.get(), last.bytes(), cudaMemcpyDeviceToHost), "reading");
  std::vector<bool> is_padding(count, true);
  for (size_t i = 0; i < all.size(); i++) {
    const size_t place = lists.places[i];
    is_padding[place] = false;
    outcomes.push_back({results[place], std::vector<float>(vocabulary)});
    check(cudaMemcpy(outcomes.back().adjusted.data(), adjusted.get() + place * vocabulary, vocabulary * sizeof(float), cudaMemcpyDeviceToHost), "reading");
    const int32_t token = results[place].token;
    REQUIRE(token >= 0 && token < static_cast<int32_t>(vocabulary), token);
    CHECK_EQUAL(lasts[lists.slots - 1 - i], token);
  }
  for (size_t i = 0; i < count; i++)
    if (is_padding[i]) CHECK_EQUAL(results[i].token, -7);
  return outcomes;
}

}  // namespace millrace::test
