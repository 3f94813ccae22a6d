// The model of step time: what it learns of a machine whose costs are known, through noise, stalls and a change of speed.
#include "schedule/step_time.h"

#include <cmath>

#include "support/random.h"
#include "support/test.h"

using namespace millrace;

namespace {

constexpr StepCosts truth = {.step_us = 9'000, .row_us = 20, .token_us = 100, .sample_us = 30, .context_us = 0.04, .pair_us = 0.005};

StepLoad any_load(test::Random& random) {
  StepLoad load;
  const int decodes = random.between(0, 100);
  for (int i = 0; i < decodes; i++) load.add(random.between(100, 3000), 1, 1);
  if (random.chance(0.6)) load.add(random.between(0, 1000), random.between(16, 1024), random.chance(0.3));
  if (load.rows == 0) load.add(0, 100, 1);
  return load;
}

double true_us(const StepLoad& load) {
  return truth.step_us + truth.row_us * load.rows + truth.token_us * load.tokens + truth.sample_us * load.samples +
         truth.context_us * static_cast<double>(load.context) + truth.pair_us * load.pairs;
}

struct Machine {
  test::Random random{42};
  StepTime model;
  double slowdown = 1, noise = 0.08, stalls = 0.01;

  void run(int steps) {
    for (int i = 0; i < steps; i++) {
      const StepLoad load = any_load(random);
      model.observe(load, true_us(load) * slowdown * std::exp(noise * random.normal()) + (random.chance(stalls) ? 20'000 : 0));
    }
  }
  // Mean of predicted over true, less 1.
  double bias() {
    double sum = 0;
    for (int i = 0; i < 500; i++) {
      const StepLoad load = any_load(random);
      sum += model.mean_us(load) / (true_us(load) * slowdown) - 1;
    }
    return sum / 500;
  }
};

}  // namespace

TEST("known costs are found through noise and stalls") {
  Machine machine;
  machine.run(3'000);
  const StepCosts found = machine.model.costs();
  CHECK(std::fabs(found.step_us / truth.step_us - 1) < 0.15, found.step_us);
  CHECK(std::fabs(found.token_us / truth.token_us - 1) < 0.05, found.token_us);
  CHECK(std::fabs(found.context_us / truth.context_us - 1) < 0.25, found.context_us);
  CHECK(std::fabs(found.pair_us / truth.pair_us - 1) < 0.5, found.pair_us);
  // Rows and samples go together in most steps, so that only their sum can be told.
  CHECK(std::fabs((found.row_us + found.sample_us) / (truth.row_us + truth.sample_us) - 1) < 0.5, found.row_us, " + ", found.sample_us);
  CHECK(std::fabs(machine.bias()) < 0.03, machine.bias());
}

TEST("a safe prediction holds in 98 of 100 steps that do not stall") {
  Machine machine;
  machine.stalls = 0;
  machine.run(1'000);
  int over = 0;
  for (int i = 0; i < 5'000; i++) {
    const StepLoad load = any_load(machine.random);
    over += true_us(load) * std::exp(machine.noise * machine.random.normal()) > machine.model.safe_us(load);
  }
  CHECK(over < 100, over, " of 5000 took longer");
}

TEST("a machine that slows down, a little or to half, is followed within 60 steps, and back") {
  for (const double slowdown : {1.2, 2.0}) {
    Machine machine;
    machine.run(1'000);
    machine.slowdown = slowdown;
    machine.run(60);
    CHECK(std::fabs(machine.bias()) < 0.06, slowdown, "x: ", machine.bias());
    machine.run(2'000);
    machine.slowdown = 1;
    machine.run(60);
    CHECK(std::fabs(machine.bias()) < 0.06, "back from ", slowdown, "x: ", machine.bias());
  }
}

TEST("a stall is remembered as one, and the model does not move") {
  Machine machine;
  machine.stalls = 0;
  machine.run(1'000);
  const StepLoad load = any_load(machine.random);
  const double before = machine.model.mean_us(load);
  machine.model.observe(load, before + 200'000);
  CHECK(machine.model.mean_us(load) < 1.02 * before, machine.model.mean_us(load), " after ", before);
  CHECK(machine.model.stall_us() > 150'000);
  machine.run(2'000);
  CHECK(machine.model.stall_us() < 30'000, machine.model.stall_us());
}

TEST("no cost is negative, and nothing is predicted from nothing") {
  test::Random random;
  StepTime model;
  CHECK_EQUAL(model.mean_us({.rows = 3, .tokens = 3, .samples = 3, .context = 3000}), 0.0);
  CHECK(!model.is_fitted());
  for (int i = 0; i < 500; i++) {
    // Context makes these steps shorter: the nearest cost that can be is 0.
    const StepLoad load = any_load(random);
    model.observe(load, std::max(100.0, 20'000 - 0.05 * static_cast<double>(load.context)));
    const StepCosts costs = model.costs();
    CHECK(costs.step_us >= 0 && costs.row_us >= 0 && costs.token_us >= 0 && costs.sample_us >= 0 && costs.context_us >= 0);
    CHECK(std::isfinite(model.safe_us(load)));
  }
  CHECK(model.is_fitted());
}
