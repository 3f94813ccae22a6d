// One step: all decodes, and the slice of prompts that the slack of the tightest stream allows, sized in time.
#include <algorithm>
#include <cmath>

#include "schedule.h"

namespace millrace {
namespace {

constexpr int slice_tokens_min = 8;          // a smaller slice costs more in rereading than it computes
constexpr double pace_kept = 0.85;           // a step takes at most this part of the tightest stream's pace,
constexpr double credit_spent = 0.12;        // and this part of what the stream has banked beyond it;
constexpr double pace_late = 0.5;            // but who is late is caught up at twice the pace, not by steps that cost more than they bring
constexpr double guard_kept = 0.5;           // a stall longer than this part of the pace cannot be guarded against
constexpr double pressure_margin = 1.3;      // prompts get this much more of the time than their deadlines ask for
constexpr double prefill_share_max = 0.97;
constexpr double prefill_share_late = 0.33;  // where decoding alone is slower than the pace, prompts do not wait for it to recover
constexpr size_t prompts_kind_max = 3;
constexpr double ahead_tokens = 2;           // a stream that may yield is so many tokens of its own,
constexpr double ahead_steps = 4;            // and so many steps, ahead of its due time

// How many tokens n fit: each_us * n + pairs_us * n^2 is at most `us`.
double tokens_within(double us, double each_us, double pairs_us) {
  if (us <= 0) return 0;
  const double slope = each_us + std::sqrt(each_us * each_us + 4 * pairs_us * us);
  return slope > 0 ? std::floor(2 * us / slope) : 1e9;
}

}  // namespace

struct Schedule::Step {
  struct Decode {
    int index;
    int64_t slack_us;
  };
  int64_t now_us;
  double guard_us;                  // kept back: one stall
  std::vector<Decode> decodes;
  StepLoad load;                    // of the decodes, then of the rows
  double allowed_us = 1e18;         // by the tightest promised stream
  double pace_us_min = 1e18;        // of the tightest stream, promised or not
  std::vector<Row> rows;
};

std::vector<Row> Schedule::compose(int64_t now_us) {
  Step step{.now_us = now_us, .guard_us = time_.stall_us()};
  gather_decodes(step);
  const double step_us = time_for_step(step);
  for (const Step::Decode& decode : step.decodes) {
    const Sequence& sequence = sequences_[decode.index];
    step.rows.push_back({sequence.asked.request, sequence.slot, sequence.computed, 1, 1});
  }
  add_prefill(step, step_us);
  step_ends_us_ = now_us + static_cast<int64_t>(step.rows.empty() ? 0 : time_.mean_us(step.load));
  for (const Row& row : step.rows) begin(row);
  return std::move(step.rows);
}

void Schedule::begin(const Row& row) {
  const int index = by_request_.at(row.request);
  Sequence& sequence = sequences_[index];
  sequence.computed += row.count;
  sequence.known += row.samples;
  sequence.pending += row.samples;
  sequence.steps++;
  if (row.samples == 0 || sequence.is_decoding) return;
  prefilling_.erase(turn_of(index));
  sequence.is_decoding = sequence.is_caught_up = true;
}

void Schedule::gather_decodes(Step& step) {
  step.decodes.reserve(running_.size());
  for (const int index : running_) {
    const Sequence& sequence = sequences_[index];
    if (!sequence.is_decoding || sequence.is_held) continue;
    if (sequence.sampled + sequence.pending == sequence.asked.tokens_max || (sequence.pending > 0 && sequence.asked.waits)) continue;
    const int64_t slack_us = sequence.due_us - step.now_us;
    const auto itl_us = static_cast<double>(sequence.asked.deadlines.itl_us), slack = static_cast<double>(slack_us);
    step.decodes.push_back({index, slack_us});
    step.load.add(sequence.computed, 1, 1);
    step.pace_us_min = std::min(step.pace_us_min, pace_kept * itl_us);
    if (!sequence.is_promised) continue;
    const double in_time_us = slack - std::min(step.guard_us, guard_kept * itl_us);
    step.allowed_us = std::min({step.allowed_us, std::max(in_time_us, pace_late * itl_us), pace_kept * itl_us + credit_spent * std::max(0.0, slack - itl_us)});
  }
}

// Streams far ahead of their due time sit the step out, unless they did so for long: who holds a slot and pages shall get on. Where nobody is
// left for whom they would, none does: the machine has nothing better to do.
void Schedule::yield(Step& step, double step_us) {
  const auto sits_out = [&](const Step::Decode& decode) {
    const Sequence& sequence = sequences_[decode.index];
    const double ahead_us = ahead_tokens * static_cast<double>(sequence.asked.deadlines.itl_us) + ahead_steps * step_us + step.guard_us;
    return static_cast<double>(decode.slack_us) > ahead_us && step.now_us - sequence.last_us < yield_us_max;
  };
  if (prefilling_.empty() && std::all_of(step.decodes.begin(), step.decodes.end(), sits_out)) return;
  std::erase_if(step.decodes, sits_out);
  step.load = {};
  for (const Step::Decode& decode : step.decodes) step.load.add(sequences_[decode.index].computed, 1, 1);
}

// The share of time that the prompts owed need from now on to be in time, in order of their deadlines.
double Schedule::prefill_pressure(const Step& step) const {
  double work_us = 0, pressure = 0;
  for (const auto& [is_free, due_us, index] : prefilling_) {
    if (is_free) break;
    work_us += prefill_work_us(time_, sequences_[index].computed, sequences_[index].known);
    const double left_us = static_cast<double>(due_us - step.now_us) - step.guard_us;
    pressure = std::max(pressure, left_us <= work_us ? 1.0 : work_us / left_us);
  }
  return pressure;
}

// How long the step may take; the decodes that fit are left in it.
double Schedule::time_for_step(Step& step) {
  const auto longest_us = static_cast<double>(limits_.step_us_max);
  if (!time_.is_fitted()) return longest_us;
  double decode_us = step.decodes.empty() ? time_.costs().step_us : time_.safe_us(step.load);
  // More decodes than the tightest can wait for: those that are far ahead let it pass.
  if (decode_us > step.allowed_us) {
    yield(step, decode_us);
    decode_us = time_.safe_us(step.load);
  }
  if (prefilling_.empty()) return decode_us;
  const bool is_too_slow = decode_us > step.pace_us_min;
  const double allowed_us = std::min(step.allowed_us, longest_us);
  const double pressure = prefill_pressure(step);
  bool is_pressed = pressure * pressure_margin > 1 - decode_us / allowed_us;
  if (is_pressed && !step.decodes.empty()) {
    yield(step, std::max(allowed_us, decode_us));
    decode_us = time_.safe_us(step.load);
  }
  if (step.decodes.empty()) return longest_us;
  // Small slices are kind to readers but cost a step's reading of the weights each: not where prompts pile up.
  is_pressed |= prefilling_.size() + waiting_.size() > prompts_kind_max;
  const double share = std::clamp(pressure_margin * pressure, limits_.prefill_share_min, prefill_share_max);
  const double wanted_us = is_pressed ? allowed_us : std::min(decode_us / (1 - share), allowed_us);
  return is_too_slow || step.allowed_us > 1e17 ? std::max(wanted_us, decode_us / (1 - prefill_share_late)) : wanted_us;
}

// As much of a slice as fills up what the machine computes at once, beside the step's other tokens.
int Schedule::whole_slice(int count, int others) const {
  const int whole = (others + count) / limits_.tokens_multiple * limits_.tokens_multiple - others;
  return whole >= slice_tokens_min ? whole : count;
}

void Schedule::add_prefill(Step& step, double step_us) {
  const StepCosts costs = time_.costs();
  const double safety = time_.safety();
  double used_us = safety * (step.rows.empty() ? costs.step_us : time_.mean_us(step.load));
  int room = std::min(limits_.step_tokens_max, time_.tokens_trusted()) - step.load.tokens;
  for (const auto& [is_free, due_us, index] : prefilling_) {
    const Sequence& sequence = sequences_[index];
    if (sequence.is_held) continue;
    const int left = sequence.known - sequence.computed;
    int count = std::min(left, room);
    if (time_.is_fitted()) {
      const double fixed_us = safety * (costs.row_us + costs.sample_us + costs.context_us * sequence.computed);
      const double each_us = safety * (costs.token_us + costs.context_us + costs.pair_us * sequence.computed), pairs_us = safety * costs.pair_us / 2;
      count = static_cast<int>(std::min<double>(count, tokens_within(step_us - used_us - fixed_us, each_us, pairs_us)));
      if (count < left) count = whole_slice(count, step.load.tokens);
      // Beside quick steps not even a small slice may fit. The first prompt gets one all the same, or it would wait until the streams
      // end: readers feel it less than the prompt's owner, as long as no promise to them breaks.
      if (const int least = std::min({left, room, slice_tokens_min}); count < least) {
        const bool is_first = step.rows.size() == step.decodes.size();
        const double bound_us = std::max(step_us, std::min(step.allowed_us, static_cast<double>(limits_.step_us_max)));
        if (!step.rows.empty() && (!is_first || used_us + fixed_us + (each_us + pairs_us * least) * least > bound_us)) break;
        count = least;
      }
      used_us += fixed_us + (each_us + pairs_us * count) * count;
      // Whose first token comes with this step does not wait for others' prompts beyond its deadline.
      if (count == left && !is_free) step_us = std::min(step_us, std::max(used_us, static_cast<double>(due_us - step.now_us) - step.guard_us));
    }
    if (count < 1) break;
    step.rows.push_back({sequence.asked.request, sequence.slot, sequence.computed, count, count == left ? 1 : 0, true});
    step.load.add(sequence.computed, count, count == left ? 1 : 0);
    room -= count;
  }
}

}  // namespace millrace
