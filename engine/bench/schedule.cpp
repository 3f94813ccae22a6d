// Replays a trace through policies on a simulated machine, at several loads, and prints one line of JSON a run: scripts/bench/schedule.ts
// makes the table. Arguments: seconds, runs a load, then TTFT, ITL and wait of voice, chat and batch in ms (a negative wait: without end).
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <queue>
#include <string>

#include "machine.h"
#include "policy.h"
#include "trace.h"

namespace millrace::bench {
namespace {

constexpr double loads[] = {0.5, 0.75, 1, 1.25, 1.5, 2, 3};
constexpr int slots_max = 512;
constexpr double on_time_min = 0.99;  // of a good answer's tokens

struct Outcome {
  Verdict verdict = Verdict::refused;
  int tokens = 0, on_time = 0;
  int64_t first_us = 0, last_us = 0;
};

// Plays it to the end of every answer; outcomes in the order of the trace.
std::vector<Outcome> replay(const std::vector<Arrival>& trace, Policy& policy, const Disturbance& disturbance, uint64_t seed) {
  Random random(seed);
  std::vector<Outcome> outcomes(trace.size());
  int64_t now_us = 0;
  size_t next = 0, live = 0;
  const auto submit_until = [&](int64_t until_us) {
    for (; next < trace.size() && trace[next].at_us <= until_us; next++) {
      Submission asked = trace[next].asked;
      asked.request = static_cast<uint32_t>(next);
      outcomes[next].verdict = policy.submit(asked, trace[next].at_us).verdict;
      live += outcomes[next].verdict != Verdict::refused;
    }
  };
  while (next < trace.size() || live > 0) {
    submit_until(now_us);
    const std::vector<Row> rows = policy.plan(now_us);
    if (rows.empty()) {
      now_us = next < trace.size() ? std::max(now_us + 1, trace[next].at_us) : now_us + 1000;
      continue;
    }
    const int64_t begun_us = now_us;
    now_us += static_cast<int64_t>(disturbed_us(step_us(rows), now_us, disturbance, random));
    submit_until(now_us);  // those who come during the step are answered then
    policy.settle(rows, begun_us, now_us);
    for (const Row& row : rows) {
      if (row.samples == 0) continue;
      Outcome& outcome = outcomes[row.request];
      const Arrival& arrival = trace[row.request];
      const Deadlines& asked = arrival.asked.deadlines;
      if (outcome.tokens == 0) outcome.first_us = now_us;
      outcome.on_time += now_us <= arrival.at_us + asked.ttft_us + outcome.tokens * asked.itl_us;
      outcome.last_us = now_us;
      if (++outcome.tokens < arrival.length) continue;
      policy.remove(row.request, now_us);
      live--;
    }
  }
  return outcomes;
}

bool is_good(const Arrival& arrival, const Outcome& outcome) {
  return outcome.verdict != Verdict::refused && outcome.first_us <= arrival.at_us + arrival.asked.deadlines.ttft_us &&
         outcome.on_time >= on_time_min * arrival.length;
}

// More good answers than any policy can give: whoever knows all arrivals and lengths beforehand picks those that cost least (Moore and
// Hodgson, 1968: the most jobs in time on one machine), every job may start before it arrives, and steps cost their arithmetic alone.
double oracle_good(const std::vector<Arrival>& trace, const Disturbance& disturbance) {
  std::vector<std::pair<double, double>> jobs;  // due, in work done by then; cost
  for (const Arrival& arrival : trace) {
    const double prompt = arrival.asked.prompt_tokens, answer = arrival.length - 1;
    const Deadlines& asked = arrival.asked.deadlines;
    const double due_us = static_cast<double>(arrival.at_us + asked.ttft_us) + answer * static_cast<double>(asked.itl_us);
    const auto slow_us = static_cast<double>(disturbance.slow_from_us);
    jobs.emplace_back(due_us <= slow_us ? due_us : slow_us + (due_us - slow_us) / disturbance.slowdown,
                      (prompt + answer) * (63.6 + 8.7) + 0.0044 * 0.5 * prompt * prompt + 3 * (answer + 1));
  }
  std::sort(jobs.begin(), jobs.end());
  std::priority_queue<double> taken;
  double work_us = 0;
  for (const auto& [due_us, cost_us] : jobs) {
    taken.push(cost_us);
    work_us += cost_us;
    if (work_us <= due_us) continue;
    work_us -= taken.top();
    taken.pop();
  }
  return static_cast<double>(taken.size());
}

// Requests a second that the undisturbed machine finishes when all are there at once and no deadline counts, the tail aside.
double capacity(TraceOptions options) {
  options.requests_per_s = 20;
  std::vector<Arrival> trace = make_trace(options);
  for (Arrival& arrival : trace) arrival.at_us = 0;
  FirstCome policy(2048, slots_max, kv_tokens_max, 1 << 30);
  const auto outcomes = replay(trace, policy, {.noise = 0, .stalls_per_s = 0, .slowdown = 1}, 1);
  std::vector<int64_t> ends;
  for (const Outcome& outcome : outcomes) ends.push_back(outcome.last_us);
  std::sort(ends.begin(), ends.end());
  const size_t most = ends.size() * 9 / 10;
  return static_cast<double>(most) / (static_cast<double>(ends[most]) / 1e6);
}

std::unique_ptr<Policy> policy_of(const std::string& name) {
  ScheduleLimits limits{.waiting_max = 4096, .slots_max = slots_max, .pages_max = kv_tokens_max / 32, .page_need = {{{32}}}, .step_tokens_max = 4096};
  if (name == "first-come-512") return std::make_unique<FirstCome>(512, slots_max, kv_tokens_max, 256);
  if (name == "first-come-2048") return std::make_unique<FirstCome>(2048, slots_max, kv_tokens_max, 256);
  limits.admits_all = name == "no-admission";
  if (limits.admits_all) limits.waiting_max = 1 << 30;
  return std::make_unique<Ours>(limits);
}

void report(const std::string& name, double load, double rate, uint64_t seed, double lasts_s, const std::vector<Arrival>& trace, const std::vector<Outcome>& outcomes,
            double oracle) {
  int good = 0, refused = 0, queued = 0, accepted[service_classes]{}, good_of[service_classes]{};
  for (size_t i = 0; i < trace.size(); i++) {
    const int which = static_cast<int>(trace[i].asked.service);
    const bool is = is_good(trace[i], outcomes[i]);
    good += is;
    refused += outcomes[i].verdict == Verdict::refused;
    accepted[which] += outcomes[i].verdict == Verdict::accepted;
    good_of[which] += is && outcomes[i].verdict == Verdict::accepted;
    queued += outcomes[i].verdict == Verdict::queued;
  }
  std::printf("{\"policy\":\"%s\",\"load\":%.2f,\"rate\":%.3f,\"seed\":%d,\"offered\":%zu,\"good\":%d,\"goodput\":%.4f,\"refused\":%d,\"queued\":%d,\"oracle\":%.4f,"
              "\"accepted\":[%d,%d,%d],\"goodOf\":[%d,%d,%d]}\n",
              name.c_str(), load, rate, static_cast<int>(seed), trace.size(), good, good / lasts_s, refused, queued, oracle / lasts_s, accepted[0], accepted[1],
              accepted[2], good_of[0], good_of[1], good_of[2]);
}

int run(int argc, char** argv) {
  if (argc != 12) {
    std::fprintf(stderr, "usage: bench_schedule SECONDS RUNS, then TTFT ITL WAIT in ms for voice, chat and batch\n");
    return 2;
  }
  const double lasts_s = std::atof(argv[1]);
  const int runs = std::atoi(argv[2]);
  TraceOptions options{.lasts_us = static_cast<int64_t>(lasts_s * 1e6)};
  for (int i = 0; i < service_classes; i++) {
    Deadlines& deadlines = options.deadlines[i];
    const double wait_ms = std::atof(argv[5 + 3 * i]);
    deadlines = {static_cast<int64_t>(std::atof(argv[3 + 3 * i]) * 1e3), static_cast<int64_t>(std::atof(argv[4 + 3 * i]) * 1e3),
                 wait_ms < 0 ? deadlines.wait_us_max : static_cast<int64_t>(wait_ms * 1e3)};
  }
  const double full = capacity(options);
  for (const double load : loads)
    for (uint64_t seed = 1; seed <= static_cast<uint64_t>(runs); seed++) {
      options.seed = seed;
      options.requests_per_s = load * full;
      const std::vector<Arrival> trace = make_trace(options);
      const Disturbance disturbance{.slow_from_us = options.lasts_us / 2};
      const double oracle = oracle_good(trace, disturbance);
      for (const char* name : {"ours", "no-admission", "first-come-512", "first-come-2048"})
        report(name, load, load * full, seed, lasts_s, trace, replay(trace, *policy_of(name), disturbance, seed), oracle);
      std::fflush(stdout);
    }
  return 0;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) { return millrace::bench::run(argc, argv); }
