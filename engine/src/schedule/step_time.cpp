#include "step_time.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace millrace {
namespace {

// Terms are counted in units of these, so that their costs are of one magnitude: step, rows, tokens, samples, context, pairs.
constexpr std::array<double, 6> scales = {1, 16, 128, 16, 65536, 1 << 18};

constexpr double forgetting = 0.998;         // of a step; the costs remember some 500
constexpr double ridge = 1e-4;               // weighs like a ten-thousandth of a step: settles what no step has told apart
constexpr double speed_gain = 0.04;
constexpr double speed_gain_alarmed = 0.25;  // once so many steps in a row were clipped on one side that it cannot be chance
constexpr int alarmed_after = 6;
constexpr double deviation_gain = 0.02;
constexpr double clip_deviations = 3;
constexpr double clip_min = 0.06, clip_max = 0.6;
constexpr double quantile_deviations = 2.6;  // 99% of a normal distribution, and a little for one with a longer tail
constexpr double stall_fading = 0.9977;
constexpr int sweeps = 12;
constexpr int tokens_first = 64;  // what the first step may hold, for want of any measure

}  // namespace

StepTime::Terms StepTime::terms_of(const StepLoad& load) {
  return {1, load.rows / scales[1], load.tokens / scales[2], load.samples / scales[3], static_cast<double>(load.context) / scales[4], load.pairs / scales[5]};
}

double StepTime::fitted_us(const Terms& x) const {
  double us = 0;
  for (int i = 0; i < terms; i++) us += costs_[i] * x[i];
  return us;
}

double StepTime::mean_us(const StepLoad& load) const { return speed_ * fitted_us(terms_of(load)); }

double StepTime::safety() const { return 1 + quantile_deviations * deviation_; }

StepCosts StepTime::costs() const {
  const auto of = [this](int term) { return speed_ * costs_[term] / scales[term]; };
  return {of(0), of(1), of(2), of(3), of(4), of(5)};
}

int StepTime::tokens_trusted() const { return std::max(tokens_first, 2 * tokens_seen_); }

void StepTime::observe(const StepLoad& load, double measured_us) {
  const Terms x = terms_of(load);
  double us = std::max(measured_us, 1.0);
  double expected = speed_ * fitted_us(x);
  stall_us_ *= stall_fading;
  if (is_fitted() && expected > 0) {
    const double clip = std::clamp(clip_deviations * deviation_, clip_min, clip_max);
    const double excess = us / expected - 1, kept = std::clamp(excess, -clip, clip);
    if (excess > clip) stall_us_ = std::max(stall_us_, us - expected);
    const bool clipped = excess != kept;
    const int side = excess > 0 ? 1 : -1;
    clipped_in_a_row_ = !clipped ? 0 : clipped_in_a_row_ * side > 0 ? clipped_in_a_row_ + side : side;
    // The mean of |error| of a normal distribution is 0.8 of its deviation.
    deviation_ += deviation_gain * (1.25 * std::fabs(kept) - deviation_);
    us = expected * (1 + kept);
    follow(kept);
  } else {
    expected = us;
  }
  learn(x, us / speed_, expected / speed_);
  tokens_seen_ = std::max(tokens_seen_, load.tokens);
  observed_++;
}

void StepTime::follow(double excess) {
  const bool alarmed = std::abs(clipped_in_a_row_) >= alarmed_after;
  speed_ *= 1 + (alarmed ? speed_gain_alarmed : speed_gain) * excess;
}

// One step of least squares on us / scale_us, then sweeps of coordinate descent, which keep costs from falling below 0.
void StepTime::learn(const Terms& x, double us, double scale_us) {
  const double weight = 1 / (scale_us * scale_us);
  for (int i = 0; i < terms; i++) {
    for (int j = 0; j < terms; j++) products_[i][j] = forgetting * products_[i][j] + weight * x[i] * x[j];
    targets_[i] = forgetting * targets_[i] + weight * x[i] * us;
  }
  for (int sweep = 0; sweep < sweeps; sweep++)
    for (int i = 0; i < terms; i++) {
      double rest = targets_[i];
      for (int j = 0; j < terms; j++)
        if (j != i) rest -= products_[i][j] * costs_[j];
      // The ridge is relative to the first product, that of the constant, whose weight is the number of steps remembered.
      costs_[i] = std::max(0.0, rest / (products_[i][i] + ridge * products_[0][0]));
    }
}

}  // namespace millrace
