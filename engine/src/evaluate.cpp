#include "evaluate.h"

#include <algorithm>

#include "base/attempt.h"
#include "base/text.h"

namespace millrace {

Result<std::vector<float>> evaluate_now(Assembly& parts, const std::vector<int32_t>& tokens, int chunk_tokens) {
  const int count = static_cast<int>(tokens.size());
  const int chunk = std::min(chunk_tokens, parts.schedule_limits.step_tokens_max);
  const int pages = parts.schedule_limits.page_need.of(count);
  std::vector<float> logits;
  if (Status status = attempt([&] { logits.resize(static_cast<size_t>(count) * parts.info.vocabulary_size); }); !status.ok()) return status;
  const int slot = parts.slots->take(pages);
  if (slot < 0) return Status::error("no slot is free to evaluate in");
  Status status = parts.slots->open(slot);
  for (int first = 0; status.ok() && first < count; first += chunk) {
    const int now = std::min(chunk, count - first);
    status = parts.slots->grow(slot, first, now);
    if (status.ok()) status = parts.slots->await();
    if (!status.ok()) break;
    Plan plan;
    plan.rows = {{.request = 0, .slot = slot, .first = first, .count = now, .samples = now}};
    plan.tokens.assign(tokens.begin() + first, tokens.begin() + first + now);
    plan.logits = logits.data() + static_cast<size_t>(first) * parts.info.vocabulary_size;
    status = attempt([&] { parts.backend->run(plan); });
  }
  parts.slots->give_back(slot);
  if (!status.ok())
    return Status::error(text(count, " tokens need ", pages, " pages of KV memory, more than are free of ", parts.slots->pages_max(), " (",
                              status.message(), "); raise --kv-memory or evaluate fewer"));
  return logits;
}

}  // namespace millrace
