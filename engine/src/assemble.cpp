#include "assemble.h"

#include <algorithm>
#include <filesystem>

#include "base/clock.h"
#include "base/machine.h"
#include "base/text.h"
#include "cpu/backend.h"

namespace millrace {
namespace {

constexpr int context_default_max = 8192;
constexpr int64_t kv_granule_bytes = 64 << 10;
// Evaluation takes a slot of its own, so that it never waits for a request to end.
constexpr int evaluation_slots = 1;

std::string mebibytes(uint64_t bytes) { return text(bytes >> 20, " MiB"); }

// How much KV memory to allow: what all slots could use, but no more than half of what stays free beside the weights.
uint64_t kv_memory_default(uint64_t wanted, uint64_t free_bytes, uint64_t weight_bytes) {
  const uint64_t left = free_bytes > weight_bytes ? free_bytes - weight_bytes : 0;
  return std::min(wanted, left / 2);
}

// What a person calls the model: a file's name without its ending, a folder's as it is.
std::string name_of(const std::string& path) {
  const std::filesystem::path whole = std::filesystem::path(path).lexically_normal();
  if (!whole.has_filename()) return whole.parent_path().filename().string();
  std::error_code ignored;
  return (std::filesystem::is_directory(whole, ignored) ? whole.filename() : whole.stem()).string();
}

Status choose_context(Assembly& parts) {
  const int trained = parts.model.config.context;
  if (parts.options.context_tokens == 0) parts.options.context_tokens = std::min(trained, context_default_max);
  if (parts.options.context_tokens > trained)
    return Status::error(text("a context of ", parts.options.context_tokens, " tokens is more than the ", trained, " this model was trained for"));
  return Status();
}

Status reserve_slots(Assembly& parts, const Machine& machine) {
  const ModelConfig& config = parts.model.config;
  const int element_bytes = parts.options.precision == Precision::float32 ? 4 : 2;
  const KvLayout layout = plan_pages(config.layers, config.kv_heads, config.head_dim, element_bytes, kv_granule_bytes);
  const int pages_a_slot = layout.pages_for(parts.options.context_tokens);
  const int slots = parts.options.slots + evaluation_slots;
  const uint64_t page_bytes = static_cast<uint64_t>(layout.page_bytes);
  const bool asked = parts.options.kv_memory_bytes != 0;
  if (!asked)
    parts.options.kv_memory_bytes =
        kv_memory_default(page_bytes * static_cast<uint64_t>(pages_a_slot) * static_cast<uint64_t>(slots), machine.memory_free_bytes, parts.file->size_bytes());
  const uint64_t pages = std::min(parts.options.kv_memory_bytes / page_bytes, static_cast<uint64_t>(pages_a_slot) * static_cast<uint64_t>(slots));
  if (pages < 1)
    return Status::error(text("KV memory of ", parts.options.kv_memory_bytes, " bytes holds no page of ", page_bytes, " bytes; ",
                              asked ? "raise --kv-memory" : "free some memory"));
  auto memory = reserve_kv_memory(slots, pages_a_slot, layout.page_bytes, static_cast<int>(pages));
  if (!memory.ok()) return memory.status();
  parts.slots = std::make_unique<KvSlots>(memory.take(), layout, slots);
  parts.schedule_limits.pages_max = static_cast<int>(pages);
  parts.schedule_limits.page_tokens = layout.page_tokens;
  parts.info.log.push_back(text("KV memory: at most ", mebibytes(pages * page_bytes), " (", asked ? "asked for" : "half of what is free, or all that the slots can use",
                                "), pages of ", layout.page_tokens, " tokens in ", layout.page_bytes >> 10, " KiB, ", parts.options.slots, " slots of ",
                                parts.options.context_tokens, " tokens"));
  return Status();
}

}  // namespace

Result<std::unique_ptr<Assembly>> assemble(const EngineOptions& options) {
  const uint64_t begun = now_us();
  auto parts = std::make_unique<Assembly>();
  parts->options = options;
  const Machine machine = inspect_machine();

  auto file = open_model(options.path);
  if (!file.ok()) return file.status();
  parts->file = file.take();
  auto vocabulary = read_vocabulary(*parts->file);
  if (!vocabulary.ok()) return vocabulary.status();
  parts->vocabulary = vocabulary.take();
  auto model = read_model(*parts->file);
  if (!model.ok()) return model.status();
  parts->model = model.take();
  if (Status status = choose_context(*parts); !status.ok()) return status;
  choose_frequencies(parts->model, parts->options.context_tokens);

  const Kernels* kernels = kernels_of(options.kernels, machine);
  if (kernels == nullptr) return Status::error("this CPU or this build lacks the kernels that were asked for; ask for auto or reference");
  if (options.threads == 0) parts->options.threads = machine.threads;
  parts->team = std::make_unique<Team>(parts->options.threads);

  ModelInfo& info = parts->info;
  info = {name_of(options.path), parts->model.architecture, parts->model.parameters, parts->options.context_tokens,
          parts->model.config.vocabulary, kernels->name, parts->options.threads, parts->vocabulary.stops, {}};
  info.log.push_back(text("model: ", info.name, " (\"", parts->model.name, "\"), ", info.architecture, ", ", info.parameters / 1000000, " M parameters, ", mebibytes(parts->file->size_bytes())));
  info.log.push_back(text("kernels: ", kernels->name, ", ", options.precision == Precision::float32 ? "float32" : "as stored", ", ",
                          parts->options.threads, parts->options.threads == 1 ? " thread" : " threads", " (",
                          options.threads != 0 ? "asked for" : "by affinity and cgroup", ")"));
  if (Status status = reserve_slots(*parts, machine); !status.ok()) return status;

  ScheduleLimits& limits = parts->schedule_limits;
  const int tokens_max = std::max(limits.step_tokens_max, parts->options.slots + limits.mixed_tokens_max);
  auto backend = std::make_unique<CpuBackend>(parts->model, *parts->slots, *parts->team, *kernels, options.precision, tokens_max);
  // Who asked for float32 knows what becomes of the types.
  if (options.precision == Precision::stored)
    for (std::string& line : backend->log()) info.log.push_back(std::move(line));
  parts->backend = std::move(backend);
  info.log.push_back(text("loaded in ", (now_us() - begun) / 1000, " ms"));
  return parts;
}

}  // namespace millrace
