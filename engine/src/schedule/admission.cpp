#include "admission.h"

#include <algorithm>
#include <cmath>

namespace millrace {
namespace {

constexpr double share_min = 0.08;       // of time for prompts: below this decoding alone fills the machine
constexpr double step_of_pace = 0.85;    // steps are planned no longer than this part of the tightest stream's pace
constexpr double long_run = 0.5;         // of the step's safety margin, for a sum over many steps
constexpr double work_of_slice = 0.5;    // a slice of prompt is half of its step, for the count of slices
constexpr double ends_unsure_us = 3e6;    // sooner than this nobody can be relied on to end
constexpr double late_us_unknown = 1e6;  // where nothing ends that could be waited for

double step_us(const Commitments& commitments, int64_t step_us_max) {
  const double max = static_cast<double>(step_us_max);
  return commitments.itl_us_min == 0 ? max : std::min(max, step_of_pace * static_cast<double>(commitments.itl_us_min));
}

constexpr double margin_grows = 1.1, margin_shrinks = 0.99968;  // the latter: the former to the power of -1/300
constexpr double margin_min = 1.05, margin_max = 3;

// Time until so many are free, with some released on the way.
double wait_us(double missing, double released_per_us) {
  if (missing <= 0) return 0;
  return released_per_us > 0 ? missing / released_per_us : late_us_unknown;
}

// How much later than well before its deadline a slot and pages are expected for the newcomer, behind those who are served before it.
double room_late_us(const Newcomer& newcomer, const Commitments& commitments) {
  int slots = 1, pages = newcomer.pages;
  for (const Owed& owed : commitments.owed) {
    if (owed.due_us > newcomer.due_us) break;
    slots += owed.pages > 0;
    pages += owed.pages;
  }
  const double slots_us = wait_us(slots - commitments.slots_free, commitments.slots_released_per_us);
  const double pages_us = wait_us(pages - commitments.pages_free, commitments.pages_released_per_us);
  const double spare_us = static_cast<double>(newcomer.due_us - commitments.free_at_us) / 2 - ends_unsure_us;
  return std::max(0.0, std::max(slots_us, pages_us) - std::max(0.0, spare_us));
}

}  // namespace

void PromiseMargin::observe(bool is_late) { value_ = std::clamp(value_ * (is_late ? margin_grows : margin_shrinks), margin_min, margin_max); }

double prefill_work_us(const StepTime& time, int first, int prompt_tokens) {
  const StepCosts costs = time.costs();
  const int tokens = prompt_tokens - first;
  const double compute_us = tokens * costs.token_us + StepLoad::pairs_of(first, tokens) * costs.pair_us;
  const double slices = 1 + compute_us / (work_of_slice * 60'000);
  const double margin = 1 + long_run * (time.safety() - 1);
  return margin * (compute_us + costs.sample_us + slices * (costs.row_us + costs.context_us * 0.5 * (first + prompt_tokens)));
}

double prefill_share(const Commitments& commitments, const StepTime& time, int64_t step_us_max) {
  const StepCosts costs = time.costs();
  const double margin = 1 + long_run * (time.safety() - 1);
  const double decoding = commitments.rows_per_us * (costs.row_us + costs.token_us + costs.sample_us) + commitments.context_per_us * costs.context_us;
  return 1 - margin * (costs.step_us / step_us(commitments, step_us_max) + decoding);
}

double lateness_us(const Newcomer& newcomer, const Commitments& commitments, const StepTime& time, int64_t step_us_max) {
  double late_us = room_late_us(newcomer, commitments);

  // With the newcomer's stream among those that decode.
  Commitments with;
  with.itl_us_min = commitments.itl_us_min == 0 ? newcomer.itl_us : std::min(commitments.itl_us_min, newcomer.itl_us);
  with.rows_per_us = commitments.rows_per_us + rows_per_us(newcomer.itl_us);
  with.context_per_us = commitments.context_per_us + newcomer.tokens * rows_per_us(newcomer.itl_us);
  const double share = prefill_share(with, time, step_us_max) * (1 - commitments.headroom);
  if (share < share_min) {
    const double streams_too_many = std::max(1.0, (share_min - share) / std::max(1e-3, 1 - share) * commitments.streams);
    return std::max(late_us, wait_us(streams_too_many, commitments.slots_released_per_us));
  }

  // The last slice's step must end in time, and one may stall.
  const double from_us = static_cast<double>(commitments.free_at_us) + 0.5 * step_us(with, step_us_max) + time.stall_us();
  double work_us = 0;
  bool is_counted = false;
  const auto count_in = [&] {
    is_counted = true;
    work_us += prefill_work_us(time, 0, newcomer.prompt_tokens);
    late_us = std::max(late_us, newcomer.margin * work_us / share - (static_cast<double>(newcomer.due_us) - from_us));
  };
  for (const Owed& owed : commitments.owed) {
    if (!is_counted && owed.due_us > newcomer.due_us) count_in();
    work_us += owed.work_us;
    const bool is_broken = owed.margin * work_us / share > static_cast<double>(owed.due_us) - from_us;
    // A promise to those served before the newcomer is none of its business.
    if (is_counted && is_broken) late_us = std::max(late_us, static_cast<double>(owed.due_us - newcomer.due_us) + 1);
  }
  if (!is_counted) count_in();
  return late_us;
}

}  // namespace millrace
