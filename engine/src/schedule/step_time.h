// How long a step takes, learnt from the steps before it: speed x (what each part of the load costs). The costs are fitted by recursive
// least squares on relative errors (a step's noise grows with its length), with forgetting and without negative costs; `speed` follows the
// machine as a whole within some 50 steps, long before the costs themselves would. A stall is clipped before either learns from it.
#pragma once

#include <array>
#include <cstdint>

namespace millrace {

// What a step consists of, as far as its time goes.
struct StepLoad {
  int rows = 0;
  int tokens = 0;       // positions computed
  int samples = 0;      // rows that yield a token
  int64_t context = 0;  // positions whose keys and values are read; each row reads its own once
  double pairs = 0;     // of a prompt's tokens and the positions that they attend to

  void add(int first, int count, int sampled) {
    rows++;
    tokens += count;
    samples += sampled;
    context += first + count;
    if (count > 1) pairs += pairs_of(first, count);
  }
  static double pairs_of(int first, int count) { return count * (first + 0.5 * count); }
};

// Of one step, row, token, sample, position read and pair.
struct StepCosts {
  double step_us = 0, row_us = 0, token_us = 0, sample_us = 0, context_us = 0, pair_us = 0;
};

class StepTime {
 public:
  void observe(const StepLoad& load, double measured_us);

  double mean_us(const StepLoad& load) const;
  // What 99 of 100 steps stay under, stalls aside.
  double safe_us(const StepLoad& load) const { return mean_us(load) * safety(); }
  double safety() const;
  // The longest a step of late exceeded what it should have taken; fades by half in some 300 steps.
  double stall_us() const { return stall_us_; }
  StepCosts costs() const;

  // Enough steps were seen to promise anything.
  bool is_fitted() const { return observed_ >= fitted_after; }
  int64_t observed() const { return observed_; }
  // A linear model is believed up to twice the largest step it was shown.
  int tokens_trusted() const;

  static constexpr int64_t fitted_after = 16;

 private:
  static constexpr int terms = 6;
  using Terms = std::array<double, terms>;
  static Terms terms_of(const StepLoad& load);
  double fitted_us(const Terms& x) const;
  void follow(double excess);
  void learn(const Terms& x, double us, double scale_us);

  std::array<Terms, terms> products_{};  // sum of x x' / us^2, fading
  Terms targets_{};                      // sum of x y / us^2, fading
  Terms costs_{};                        // of each term in its own scale, at speed 1
  double speed_ = 1;                     // above 1: slower than the costs say
  double deviation_ = 0.2;               // relative
  double stall_us_ = 0;
  int clipped_in_a_row_ = 0;             // signed
  int tokens_seen_ = 0;
  int64_t observed_ = 0;
};

}  // namespace millrace
