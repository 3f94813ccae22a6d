// What the load client has seen, as JSON.
#pragma once

#include <sys/resource.h>

#include <cinttypes>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "histogram.h"

namespace relay {

// One stream's life. Times are microseconds of CLOCK_MONOTONIC, 0 for what did not happen.
struct Stream {
  int64_t due_us = 0;       // its START
  int64_t answered_us = 0;  // its first token, or its refusal
  double promised_ms = 0;   // from START to the first token, by STARTED
  uint64_t seq = 0;
  enum { unanswered, running, refused, ended } state = unanswered;
};

// Of tokens that came since `begin`.
struct Window {
  int64_t begun_us = 0;
  double cpu_begun_s = 0;
  uint64_t tokens = 0;
  uint64_t frames = 0;
  uint64_t bytes = 0;  // of their frames, headers included
  Histogram latency;   // from when a token was due to when it was read
};

// Of the whole run.
struct Tally {
  uint64_t open = 0;
  uint64_t lost = 0;       // sockets that did not open, or closed before the end
  uint64_t holes = 0;      // frames whose sequence does not follow
  uint64_t unstamped = 0;  // tokens without a time
  std::map<std::string, uint64_t> refusals;  // by code, those of running streams too
  std::map<std::string, uint64_t> losses;    // by what happened
};

inline double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

inline void print_quantiles(const char* name, const Histogram& histogram) {
  std::printf(",\"%s\":{\"count\":%" PRIu64 ",\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f}", name, histogram.count(),
              histogram.quantile_ms(0.5), histogram.quantile_ms(0.9), histogram.quantile_ms(0.99), histogram.quantile_ms(0.999), histogram.max_ms());
}

// Keys are codes of errors and sentences of this program, neither of which has quotes in it.
inline void print_counts(const char* name, const std::map<std::string, uint64_t>& counts) {
  std::printf(",\"%s\":{", name);
  const char* comma = "";
  for (const auto& [key, count] : counts) {
    std::printf("%s\"%s\":%" PRIu64, comma, key.c_str(), count);
    comma = ",";
  }
  std::printf("}");
}

// How STARTs were answered: each within what it was promised, or `deadline_ms` where it was promised nothing.
inline void print_answers(const std::vector<Stream>& streams, double deadline_ms) {
  Histogram first, refusal;
  uint64_t late = 0, refused_late = 0, unanswered = 0, sent = 0;
  for (const Stream& stream : streams) {
    if (stream.due_us == 0) continue;
    sent++;
    const int64_t waited_us = stream.answered_us - stream.due_us;
    const bool is_refused = stream.state == Stream::refused;
    const double deadline = stream.promised_ms > 0 && !is_refused ? stream.promised_ms : deadline_ms;
    if (stream.answered_us == 0) unanswered++;
    else (is_refused ? refusal : first).add(waited_us);
    if (stream.answered_us != 0 && static_cast<double>(waited_us) > deadline * 1e3) (is_refused ? refused_late : late)++;
  }
  std::printf(",\"started\":%" PRIu64 ",\"late\":%" PRIu64 ",\"refusedLate\":%" PRIu64 ",\"unanswered\":%" PRIu64, sent, late, refused_late, unanswered);
  print_quantiles("firstTokenMs", first);
  print_quantiles("refusalMs", refusal);
}

inline void print_report(const Window& window, const Tally& tally, const std::vector<Stream>& streams, double deadline_ms, int64_t now_us) {
  const double seconds = static_cast<double>(now_us - window.begun_us) / 1e6;
  uint64_t running = 0;
  for (const Stream& stream : streams) running += stream.state == Stream::running ? 1 : 0;
  std::printf("{\"event\":\"report\",\"seconds\":%.6f,\"clientCpuSeconds\":%.3f", seconds, cpu_seconds() - window.cpu_begun_s);
  std::printf(",\"tokens\":%" PRIu64 ",\"frames\":%" PRIu64 ",\"bytes\":%" PRIu64, window.tokens, window.frames, window.bytes);
  std::printf(",\"open\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"running\":%" PRIu64, tally.open, tally.lost, running);
  std::printf(",\"holes\":%" PRIu64 ",\"unstamped\":%" PRIu64, tally.holes, tally.unstamped);
  print_counts("refusals", tally.refusals);
  print_counts("losses", tally.losses);
  print_quantiles("latencyMs", window.latency);
  print_answers(streams, deadline_ms);
  std::printf("}\n");
  std::fflush(stdout);
}

}  // namespace relay
