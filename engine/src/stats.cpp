#include "stats.h"

namespace millrace {

void describe(const Schedule& schedule, const KvSlots& slots, EngineStats& stats) {
  stats.running = schedule.running_count();
  stats.waiting = schedule.waiting_count();
  const Misses& misses = schedule.misses();
  stats.misses = {misses.of(MissCause::queueing), misses.of(MissCause::prefill), misses.of(MissCause::step_time), misses.of(MissCause::mapping),
                  misses.of(MissCause::reader)};
  const StepCosts costs = schedule.step_time().costs();
  stats.step_costs = {costs.step_us, costs.row_us, costs.token_us, costs.sample_us, costs.context_us, costs.pair_us};
  const auto page_bytes = static_cast<uint64_t>(slots.plan().page_bytes());
  stats.kv_bytes_mapped = static_cast<uint64_t>(slots.pages_mapped()) * page_bytes;
  stats.kv_bytes_promised = static_cast<uint64_t>(slots.pages_promised()) * page_bytes;
  const PrefixCounts& cached = slots.counts();
  stats.prefix_cache = {cached.hits, cached.hit_tokens, cached.evicted_tokens};
}

}  // namespace millrace
