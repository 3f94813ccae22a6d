#include "assemble.h"

#include <algorithm>
#include <filesystem>
#include <future>

#include "base/attempt.h"
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
// Slots that keep what ended sequences computed, for each that may run; addresses cost nothing, but looking through them does.
constexpr int cached_slots_a_slot = 4, cached_slots_max = 256;
// Of addresses a process has 128 TiB; KV memory takes at most so much of them.
constexpr int64_t address_bytes_max = int64_t{32} << 40;
// What a step has room for beside the decodes of all slots.
constexpr int prefill_tokens_min = 64;
// A GPU's slices are whole tiles, the larger of which bring far more tokens for little more time.
constexpr double gpu_prefill_share_min = 0.47;
// It reads its weights once a step, however many tokens that has: so many more than a CPU's.
constexpr int gpu_step_tokens_max = 2048, gpu_tokens_multiple = 64, gpu_tokens_multiple_fp8 = 128;
// Where decodes would leave prompts less than twice as much, steps are longer.
constexpr int gpu_step_tokens_a_slot = 3;

// How long each part of loading took.
class Itemized {
 public:
  void done(const char* part) {
    const uint64_t now = now_us();
    items_ += text(items_.empty() ? "" : ", ", part, " ", (now - last_) / 1000);
    last_ = now;
  }
  std::string line() const { return text("loaded in ", (last_ - begun_) / 1000, " ms: ", items_); }

 private:
  const uint64_t begun_ = now_us();
  uint64_t last_ = begun_;
  std::string items_;
};

std::string mebibytes(uint64_t bytes) { return text(bytes >> 20, " MiB"); }

// How much KV memory to allow: what all slots could use, but no more than a part of what stays free beside the weights. A CPU's memory is
// others' too; a GPU's is ours.
uint64_t kv_memory_default(const Assembly& parts, uint64_t wanted, uint64_t free_bytes, uint64_t weight_bytes) {
  const uint64_t left = free_bytes > weight_bytes ? free_bytes - weight_bytes : 0;
  return std::min(wanted, parts.gpu ? left / 20 * 19 : left / 2);
}

KvElement element_of(const Assembly& parts) {
  if (parts.gpu) return parts.options.kv_type == KvType::q8 ? KvElement::e4m3 : KvElement::bfloat16;
  if (parts.options.precision == Precision::float32) return KvElement::float32;
  return parts.options.kv_type == KvType::q8 ? KvElement::int8 : KvElement::float16;
}

bool may_run_on_gpu(const EngineOptions& options) {
  return (options.kernels == KernelSet::hopper || options.kernels == KernelSet::automatic) && options.precision != Precision::float32;
}

// A GPU where there is one and nothing was asked for that a CPU alone has.
Status choose_device(Assembly& parts) {
  const EngineOptions& options = parts.options;
  const bool is_asked = options.kernels == KernelSet::hopper;
  if (options.precision == Precision::fp8 && !is_asked && options.kernels != KernelSet::automatic)
    return Status::error("weights in fp8 are run on a GPU only; leave --precision out, or ask for --kernels hopper");
  if (!may_run_on_gpu(options)) return is_asked ? Status::error("float32 is computed on a CPU only; ask for the kernels of one") : Status();
  auto gpu = inspect_cuda();
  if (gpu.ok()) parts.gpu = gpu.take();
  return gpu.ok() || (!is_asked && options.precision != Precision::fp8) ? Status() : Status::error(text("cannot run on a GPU: ", gpu.message(), "; ask for --kernels auto or cpu"));
}

CudaLimits cuda_limits(const Assembly& parts, int all_slots) {
  return {.tokens_max = parts.schedule_limits.step_tokens_max, .slots = all_slots, .samples_max = parts.options.slots, .context_tokens = parts.options.context_tokens,
          .as_fp8 = parts.options.precision == Precision::fp8,
          .is_deterministic = parts.options.deterministic};
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
  const int context = parts.options.context_tokens;
  const KvPlan plan =
      plan_pages(windows_of(parts.model, context), config.kv_heads, config.head_dim, element_of(parts), parts.gpu ? cuda_granule_bytes : kv_granule_bytes);
  const int slots = parts.options.slots + evaluation_slots, pages_a_range = plan.pages_a_range(context);
  const uint64_t page_bytes = static_cast<uint64_t>(plan.page_bytes());
  const int64_t slot_bytes = plan.page_bytes() * pages_a_range * plan.group_count();
  const int cached_slots = !parts.options.prefix_cache ? 0
                           : static_cast<int>(std::clamp<int64_t>(address_bytes_max / slot_bytes - slots, 0, std::min(cached_slots_a_slot * parts.options.slots, cached_slots_max)));
  const int steps = parts.gpu || parts.options.plans_ahead ? 2 : 1;  // that are not finished
  const PageNeed need = kv_page_need(plan, steps * parts.schedule_limits.step_tokens_max);
  const auto pages_a_slot = static_cast<uint64_t>(need.of(context));
  const bool asked = parts.options.kv_memory_bytes != 0;
  if (!asked) {
    const uint64_t free_bytes = parts.gpu ? parts.gpu->memory_free_bytes : machine.memory_free_bytes;
    const uint64_t taken = parts.gpu ? cuda_backend_bytes(parts.model, cuda_limits(parts, slots + cached_slots)) : parts.file->size_bytes();
    parts.options.kv_memory_bytes = kv_memory_default(parts, page_bytes * pages_a_slot * static_cast<uint64_t>(slots), free_bytes, taken);
  }
  const uint64_t pages = std::min(parts.options.kv_memory_bytes / page_bytes, pages_a_slot * static_cast<uint64_t>(slots + cached_slots));
  if (pages < 1)
    return Status::error(text("KV memory of ", parts.options.kv_memory_bytes, " bytes holds no page of ", page_bytes, " bytes; ",
                              asked ? "raise --kv-memory" : "free some memory"));
  const KvMemory::Shape shape{(slots + cached_slots) * plan.group_count(), pages_a_range, static_cast<int>(pages)};
  auto memory = parts.gpu ? reserve_cuda_pages(shape.places(), plan.page_bytes(), shape.pages_max) : reserve_mmap_pages(shape.places(), plan.page_bytes());
  if (!memory.ok()) return memory.status();
  const bool maps_ahead = parts.gpu || parts.options.plans_ahead;
  parts.slots = std::make_unique<KvSlots>(std::make_unique<KvMemory>(memory.take(), shape, maps_ahead), plan, slots + cached_slots, cached_slots > 0);
  parts.schedule_limits.pages_max = static_cast<int>(pages);
  parts.schedule_limits.page_need = need;
  std::string groups;
  for (const KvLayout& group : plan.groups) {
    groups += text(groups.empty() ? "" : " and ", group.page_tokens, " tokens of ", group.layers, " layers");
    if (group.window > 0) groups += text(" that see ", group.window);
  }
  parts.info.log.push_back(text("KV memory: at most ", mebibytes(pages * page_bytes), " (", asked ? "asked for" : parts.gpu ? "what is free, or all that the slots can use" : "half of what is free, or all that the slots can use",
                                "), pages of ", page_bytes >> 10, " KiB with ", groups, ", ", parts.options.slots, " slots of ", context, " tokens, ",
                                cached_slots > 0 ? text(cached_slots, " more to cache prefixes") : "no prefix cache"));
  parts.all_slots = slots + cached_slots;
  return Status();
}

Status make_backend(Assembly& parts, const Kernels* kernels) {
  const int tokens_max = parts.schedule_limits.step_tokens_max;
  if (parts.gpu)
    return attempt([&] { parts.backend = make_cuda_backend(*parts.file, parts.model, *parts.slots, *parts.team, cuda_limits(parts, parts.all_slots), parts.info.log, parts.info.work); });
  auto backend = std::make_unique<CpuBackend>(parts.model, *parts.slots, *parts.team, *kernels, parts.options.precision, tokens_max);
  // Who asked for float32 knows what becomes of the types.
  if (parts.options.precision == Precision::stored)
    for (std::string& line : backend->log()) parts.info.log.push_back(std::move(line));
  parts.info.work = backend->work();
  if (parts.options.plans_ahead) backend->plan_ahead(1);
  parts.backend = std::move(backend);
  return Status();
}

std::string describe_kernels(const Assembly& parts, const EngineOptions& asked) {
  if (parts.gpu)
    return text("kernels: hopper, on ", parts.gpu->name, ", ", asked.precision == Precision::fp8 ? "weights in E4M3" : "bfloat16",
                element_of(parts) == KvElement::e4m3 ? ", KV in E4M3" : "", asked.deterministic ? ", deterministic" : "", ", ",
                parts.options.threads, " threads to load");
  return text("kernels: ", parts.info.kernels, ", ", asked.precision == Precision::float32 ? "float32" : "as stored",
              element_of(parts) == KvElement::int8 ? ", KV in 8 bits, " : ", ", parts.options.threads, parts.options.threads == 1 ? " thread" : " threads", " (",
              asked.threads != 0 ? "asked for" : "by affinity and cgroup", ")");
}

}  // namespace

void Assembly::release() {
  backend.reset();  // first: it refers to the others
  slots.reset();
  team.reset();
  model = {};
  file.reset();
}

Result<std::unique_ptr<Assembly>> assemble(const EngineOptions& options) {
  Itemized items;
  auto parts = std::make_unique<Assembly>();
  parts->options = options;
  const Machine machine = inspect_machine();

  // The first call to a GPU starts its driver, which takes a fifth of a second; the file is read meanwhile.
  std::future<void> waking;
  if (may_run_on_gpu(options)) waking = std::async(std::launch::async, [] { (void)inspect_cuda(); });
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
  items.done("file");

  if (waking.valid()) waking.wait();
  if (Status status = choose_device(*parts); !status.ok()) return status;
  const Kernels* kernels = kernels_of(options.kernels, machine);
  if (kernels == nullptr && !parts->gpu) return Status::error("this CPU or this build lacks the kernels that were asked for; ask for auto or reference");
  if (options.threads == 0) parts->options.threads = machine.threads;
  parts->team = std::make_unique<Team>(parts->options.threads);
  items.done("device");

  ModelInfo& info = parts->info;
  info = {name_of(options.path), parts->model.architecture, parts->model.parameters, parts->options.context_tokens,
          parts->model.config.vocabulary, parts->gpu ? "hopper" : kernels->name, parts->gpu ? parts->gpu->name : "", parts->options.threads, parts->vocabulary.stops, {}, {}};
  info.log.push_back(text("model: ", info.name, " (\"", parts->model.name, "\"), ", info.architecture, ", ", info.parameters / 1000000, " M parameters, ", mebibytes(parts->file->size_bytes())));
  info.log.push_back(describe_kernels(*parts, options));
  ScheduleLimits& limits = parts->schedule_limits;
  limits.slots_max = parts->options.slots;
  if (parts->gpu) limits.prefill_share_min = gpu_prefill_share_min;
  if (parts->gpu && !options.deterministic) limits.tokens_multiple = options.precision == Precision::fp8 ? gpu_tokens_multiple_fp8 : gpu_tokens_multiple;
  if (parts->gpu && !options.deterministic) limits.step_tokens_max = std::max(gpu_step_tokens_max, gpu_step_tokens_a_slot * options.slots);
  limits.step_tokens_max = std::max(limits.step_tokens_max, options.slots + prefill_tokens_min);
  info.has_formats = has_grammars();
  parts->formats = std::make_unique<Formats>(parts->vocabulary, info.vocabulary_size);
  items.done("vocabulary");
  if (Status status = reserve_slots(*parts, machine); !status.ok()) return status;
  items.done("KV memory");

  if (Status status = make_backend(*parts, kernels); !status.ok()) return status;
  items.done("weights");
  info.log.push_back(items.line());
  return parts;
}

}  // namespace millrace
