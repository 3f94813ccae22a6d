// How long sampling takes on a GPU.
//
//     bench_sample        a line of JSON for each batch and kind of sampling
//
// A graph of many samplings in a row is replayed, and the median of its replays taken: so a step's own graph runs them. `read_share` is
// the greedy read of the logits as a share of the memory's bandwidth; few rows come from the cache.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <vector>

#include "../random.h"
#include "cuda/kernels.h"
#include "cuda/memory.h"

namespace millrace::bench {
namespace {

constexpr int vocabulary = 128256, history_tokens = 2000, runs_a_graph = 20, replays = 30, batch_max = 256;
constexpr int batches[] = {1, 8, 64, 256};

struct Kind {
  const char* name;
  StepSample sample;
};
const Kind kinds[] = {
    {"greedy", {}},
    {"greedy, penalties", {.flags = penalty_flag, .repetition_penalty = 1.1f, .presence_penalty = 0.5f, .frequency_penalty = 0.1f}},
    {"temperature 0.8", {.temperature = 0.8f}},
    {"temperature 0.8, penalties", {.flags = penalty_flag, .temperature = 0.8f, .repetition_penalty = 1.1f}},
    {"top_p 0.9", {.temperature = 0.8f, .top_p = 0.9f}},
    {"top_k 50, top_p 0.9", {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f}},
    {"logprobs 20", {.flags = logprobs_flag, .logprobs = 20}},
};

double peak_bytes_s() {
  int khz = 0, bits = 0;
  check(cudaDeviceGetAttribute(&khz, cudaDevAttrMemoryClockRate, 0), "asking the device");
  check(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, 0), "asking the device");
  return 2e3 * khz * bits / 8;
}

// Of one call, in microseconds.
double median_us(cudaStream_t stream, const std::function<void()>& call) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a capture");
  for (int i = 0; i < runs_a_graph; i++) call();
  check(cudaStreamEndCapture(stream, &graph), "capturing");
  check(cudaGraphInstantiate(&executable, graph, 0), "making a graph");
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  std::vector<double> all;
  for (int i = -3; i < replays; i++) {
    check(cudaEventRecord(begin, stream), "timing");
    check(cudaGraphLaunch(executable, stream), "replaying");
    check(cudaEventRecord(end, stream), "timing");
    check(cudaEventSynchronize(end), "replaying");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "timing");
    if (i >= 0) all.push_back(1e3 * ms / runs_a_graph);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

void run() {
  Random random(1);
  constexpr auto values = static_cast<size_t>(batch_max) * vocabulary;
  std::vector<float> row(4 * vocabulary);
  for (float& each : row) each = static_cast<float>(3 * random.normal());
  const DeviceArray<float> logits(values), adjusted(values);
  for (size_t at = 0; at < values; at += row.size()) check(cudaMemcpy(logits.get() + at, row.data(), row.size() * sizeof(float), cudaMemcpyHostToDevice), "copying");
  std::vector<int32_t> ids(batch_max * history_tokens);
  for (int32_t& each : ids) each = static_cast<int32_t>(random.next() % vocabulary);
  const DeviceArray<int32_t> history(ids.size()), last(batch_max);
  check(cudaMemcpy(history.get(), ids.data(), history.bytes(), cudaMemcpyHostToDevice), "copying");
  const PinnedArray<SampleResult> results(batch_max);
  const DeviceArray<uint8_t> scratch(sample_scratch_bytes(batch_max, vocabulary));
  const DeviceArray<StepSample> samples(batch_max);
  const DeviceArray<StepCounts> counts(1);
  SampleTask task{.logits = logits.get(), .adjusted = adjusted.get(), .vocabulary = vocabulary, .history = history.get(), .history_stride = history_tokens};
  task.last_tokens = last.get(), task.results = results.get(), task.scratch = scratch.get();
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");

  for (const Kind& kind : kinds)
    for (const int batch : batches) {
      std::vector<StepSample> list(static_cast<size_t>(batch), kind.sample);
      for (int i = 0; i < batch; i++) {
        StepSample& sample = list[static_cast<size_t>(i)];
        sample.slot = i, sample.position = history_tokens, sample.generated_from = history_tokens / 2, sample.seed = random.next();
      }
      const StepCounts count{.samples = batch};
      check(cudaMemcpy(samples.get(), list.data(), list.size() * sizeof(StepSample), cudaMemcpyHostToDevice), "copying");
      check(cudaMemcpy(counts.get(), &count, sizeof(count), cudaMemcpyHostToDevice), "copying");
      check(cudaDeviceSynchronize(), "copying");
      StepView step;
      step.counts = counts.get(), step.samples = samples.get(), step.samples_max = batch;
      const double us = median_us(stream, [&] { sample(stream, step, task); });
      const double share = static_cast<double>(batch) * vocabulary * sizeof(float) / (us * 1e-6) / peak_bytes_s();
      std::printf("{\"kind\":\"%s\",\"batch\":%d,\"us\":%.2f,\"read_share\":%.3f}\n", kind.name, batch, us, share);
    }
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace millrace::bench

int main() {
  try {
    millrace::bench::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_sample: %s\n", error.what());
    return 1;
  }
}
