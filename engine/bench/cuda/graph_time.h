// How long launches take as one graph: the median of several replays, in seconds. `before` is called in front of each.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/error.h"

namespace millrace::bench {

template <typename LaunchAll, typename Before>
double median_graph_seconds(cudaStream_t stream, int replays, const LaunchAll& launch_all, const Before& before) {
  constexpr int warm_ups = 2;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  launch_all();
  check(cudaStreamEndCapture(stream, &graph), "capturing");
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiating a graph");
  for (cudaEvent_t* event : {&begin, &end}) check(cudaEventCreate(event), "creating an event");
  std::vector<float> times;
  for (int i = 0; i < replays + warm_ups; i++) {
    before();
    check(cudaEventRecord(begin, stream), "recording");
    check(cudaGraphLaunch(executable, stream), "replaying");
    check(cudaEventRecord(end, stream), "recording");
    check(cudaEventSynchronize(end), "replaying");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "timing");
    if (i >= warm_ups) times.push_back(ms);
  }
  check(cudaGraphExecDestroy(executable), "ending");
  check(cudaGraphDestroy(graph), "ending");
  for (const cudaEvent_t event : {begin, end}) check(cudaEventDestroy(event), "ending");
  std::ranges::sort(times);
  return times[times.size() / 2] * 1e-3;
}

}  // namespace millrace::bench
