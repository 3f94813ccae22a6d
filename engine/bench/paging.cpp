// Ranges of addresses against block tables: the speed of attention through each, the memory each wastes, and what mapping costs.
//
//     bench_paging ROUNDS        a line of JSON for each measurement
//
// A sequence decodes one token: its queries attend to its whole context, KV head by KV head, a partition of 256 positions at a time, as the
// engine's backend does it, in some layers of the model. Before each pass something else went through the caches, as a layer's weights do.
// One thread, by its own CPU time, so that what else runs here counts little. A round measures all ways in turn.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/machine.h"
#include "cpu/partition.h"
#include "kv/memory.h"
#include "paging_kernels.h"
#include "paging_memory.h"
#include "trace.h"

namespace millrace::bench {
namespace {

constexpr int64_t granule_bytes = 64 << 10;  // as assemble.cpp has it
constexpr int batches[] = {1, 8, 32}, contexts[] = {256, 1024, 4096, 8192};
constexpr int64_t pool_bytes = int64_t{1600} << 20;  // each; five of them are held at once

struct Shape {
  const char* name;
  int layers, layers_timed, heads, kv_heads, head_dim;

  // As the engine plans them.
  KvLayout range() const { return plan_pages(std::vector<int>(static_cast<size_t>(layers)), kv_heads, head_dim, KvElement::float16, granule_bytes).groups[0]; }
  // Of a table, whose pages need no granules: as many bytes as their tokens take.
  KvLayout table(int page_tokens) const {
    KvLayout layout{.layers = layers, .kv_heads = kv_heads, .head_dim = head_dim, .page_tokens = page_tokens};
    layout.page_bytes = page_tokens * layout.token_bytes();
    return layout;
  }
  int64_t timed_token_bytes() const { return range().token_bytes() / layers * layers_timed; }
};

constexpr Shape shapes[] = {{"SmolLM2-135M", 30, 2, 9, 3, 64}, {"8B", 32, 1, 32, 8, 128}};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A way to find pages, and the places of all sequences' pages.
struct Way {
  std::string name;
  KvLayout layout;
  void (*attend)(const TableTask& task);
  std::vector<const uint8_t*> bases;                // [sequence], of ranges
  std::vector<std::vector<const uint8_t*>> tables;  // [sequence][page], of tables
  std::vector<double> seconds;                      // a round each
};

// One layer after another for all sequences. The result is what the kernel made of them.
std::vector<float> attend_all(const Way& way, const Shape& shape, int sequences, int tokens, const std::vector<float>& query) {
  const int group = shape.heads / shape.kv_heads, result = 2 + shape.head_dim;
  std::vector<float> partials(static_cast<size_t>(group * result)), sums(static_cast<size_t>(result));
  for (int layer = 0; layer < shape.layers_timed; layer++)
    for (int sequence = 0; sequence < sequences; sequence++)
      for (int kv_head = 0; kv_head < shape.kv_heads; kv_head++) {
        TableTask task = {};
        task.count = group;
        task.layout = &way.layout;
        task.base = way.bases.empty() ? nullptr : way.bases[static_cast<size_t>(sequence)];
        task.table = way.tables.empty() ? nullptr : way.tables[static_cast<size_t>(sequence)].data();
        task.layer = layer;
        task.kv_head = kv_head;
        for (int n = 0; n < group; n++) {
          task.queries[n] = query.data();
          task.visible[n] = tokens;
          task.partial[n] = &partials[static_cast<size_t>(n * result)];
        }
        for (task.begin = 0; task.begin < tokens; task.begin += partition_tokens) {
          task.end = task.begin + partition_tokens;
          way.attend(task);
          for (size_t i = 0; i < sums.size(); i++) sums[i] += partials[i];
        }
      }
  return sums;
}

// All ways for one shape, over pools for as many tokens as are measured at most.
class SpeedBench {
 public:
  SpeedBench(const Shape& shape, const PagingKernels& kernels) : shape_(shape), kernels_(kernels), query_(static_cast<size_t>(shape.head_dim)) {
    const auto add = [&](Backing backing, const KvLayout& layout) {
      pools_.push_back(std::make_unique<Pool>(backing, layout, shape_.layers_timed, pool_bytes / layout.page_bytes));
    };
    // The first two are the engine's own pages, reached both ways.
    for (const Backing backing : {Backing::file, Backing::huge}) add(backing, shape.range());
    const int own = shape.range().page_tokens;
    for (const int page_tokens : {16, 32, 48})
      if (page_tokens != own) add(Backing::file, shape.table(page_tokens));
    if (own != 16) add(Backing::huge, shape.table(16));
    Random random(2);
    for (float& value : query_) value = static_cast<float>(random.normal() / std::sqrt(shape.head_dim));
  }

  bool ready() const {
    return std::all_of(pools_.begin(), pools_.end(), [](const auto& pool) { return pool->ready(); });
  }
  const Pool& huge() const { return *pools_[1]; }
  bool has_room(int sequences, int tokens) const {
    return std::all_of(pools_.begin(), pools_.end(), [&](const auto& pool) { return int64_t{sequences} * pool->layout().pages_for(tokens) <= pool->pages(); });
  }

  // False where the machine did not give the ranges, or where the same pages, found both ways, do not come to the same bits.
  bool measure(int sequences, int tokens, int rounds) const {
    const KvLayout own = shape_.range();
    const int64_t pages = own.pages_for(tokens);
    Random random(3);
    const std::vector<int64_t> dealt = pools_[0]->deal(sequences * pages, random);
    const Range range(*pools_[0], dealt);
    if (range.bytes() == nullptr) return false;
    std::vector<Way> ways = {in_a_row("ranges, 4 KiB", own, range.bytes(), sequences, tokens), by_table(*pools_[0], dealt, ", 4 KiB", sequences)};
    if (attend_all(ways[0], shape_, sequences, tokens, query_) != attend_all(ways[1], shape_, sequences, tokens, query_)) return false;
    // What ranges would do if they could be had on large pages: sequences one after another in the pool.
    ways.push_back(in_a_row("ranges, 2 MiB", own, huge().page(0), sequences, tokens));
    for (size_t i = 1; i < pools_.size(); i++) {
      const int64_t count = int64_t{sequences} * pools_[i]->layout().pages_for(tokens);
      const char* pages_of = pools_[i]->file() >= 0 ? ", 4 KiB" : ", 2 MiB";
      ways.push_back(by_table(*pools_[i], pools_[i]->deal(count, random), pages_of, sequences));
    }
    take_turns(ways, sequences, tokens, rounds);
    report(ways, sequences, tokens);
    return true;
  }

 private:
  Way in_a_row(const char* name, const KvLayout& layout, const uint8_t* from, int sequences, int tokens) const {
    Way way{name, layout, kernels_.ranges, {}, {}, {}};
    for (int sequence = 0; sequence < sequences; sequence++) way.bases.push_back(from + sequence * layout.pages_for(tokens) * layout.page_bytes);
    return way;
  }
  Way by_table(const Pool& pool, const std::vector<int64_t>& dealt, const char* pages_of, int sequences) const {
    Way way{"table of " + std::to_string(pool.layout().page_tokens) + pages_of, pool.layout(), kernels_.tables, {}, {}, {}};
    const size_t pages = dealt.size() / static_cast<size_t>(sequences);
    for (size_t at = 0; at < dealt.size(); at += pages) {
      way.tables.emplace_back();
      for (size_t i = at; i < at + pages; i++) way.tables.back().push_back(pool.page(dealt[i]));
    }
    return way;
  }

  void take_turns(std::vector<Way>& ways, int sequences, int tokens, int rounds) const {
    const int repeats = std::clamp(8192 / (sequences * tokens), 1, 16);
    for (int round = 0; round < rounds; round++)
      for (size_t turn = 0; turn < ways.size(); turn++) {
        Way& way = ways[(turn + static_cast<size_t>(round)) % ways.size()];
        double seconds = 0;
        for (int i = 0; i < repeats; i++) {
          forget();
          const double started = cpu_seconds();
          attend_all(way, shape_, sequences, tokens, query_);
          seconds += cpu_seconds() - started;
        }
        way.seconds.push_back(seconds / repeats);
      }
  }

  void report(const std::vector<Way>& ways, int sequences, int tokens) const {
    const auto bytes = static_cast<double>(int64_t{sequences} * tokens * shape_.timed_token_bytes());
    for (const Way& way : ways) {
      std::printf("{\"kind\":\"speed\",\"kernels\":\"%s\",\"shape\":\"%s\",\"sequences\":%d,\"tokens\":%d,\"way\":\"%s\",\"bytes\":%.0f,\"seconds\":[", kernels_.name,
                  shape_.name, sequences, tokens, way.name.c_str(), bytes);
      for (size_t i = 0; i < way.seconds.size(); i++) std::printf("%s%.9f", i == 0 ? "" : ",", way.seconds[i]);
      std::printf("]}\n");
    }
    std::fflush(stdout);
  }

  const Shape& shape_;
  const PagingKernels& kernels_;
  std::vector<std::unique_ptr<Pool>> pools_;
  std::vector<float> query_;
};

// Memory held over memory used, over the lives of a trace's answers: from the prompt's last token to the answer's, a page at a time.
void measure_waste(const Shape& shape) {
  const std::vector<Arrival> trace = make_trace({.requests_per_s = 5, .lasts_us = 3600'000'000});
  const KvLayout own = shape.range();
  const auto report = [&](const char* way, int page_tokens, int64_t page_bytes, int64_t bytes_a_page_beside) {
    double held = 0, used = 0, beside = 0;
    for (const Arrival& arrival : trace)
      for (int tokens = arrival.asked.prompt_tokens; tokens < arrival.asked.prompt_tokens + arrival.length; tokens++) {
        const double pages = (tokens + page_tokens - 1) / page_tokens;
        held += pages * static_cast<double>(page_bytes);
        used += static_cast<double>(tokens * own.token_bytes());
        beside += pages * static_cast<double>(bytes_a_page_beside);
      }
    const double padded = static_cast<double>(page_bytes) / static_cast<double>(page_tokens * own.token_bytes()) - 1;
    std::printf("{\"kind\":\"waste\",\"shape\":\"%s\",\"way\":\"%s\",\"pageTokens\":%d,\"pageBytes\":%lld,\"padding\":%.6f,\"lastPage\":%.6f,\"beside\":%.6f}\n", shape.name, way,
                page_tokens, static_cast<long long>(page_bytes), padded, held / used / (1 + padded) - 1, beside / used);
  };
  // The kernel keeps a page table entry of 8 bytes for each 4 KiB, and a mapping of its own (some 200 bytes) for each page of a range.
  report("ranges", own.page_tokens, own.page_bytes, own.page_bytes / 4096 * 8 + 200);
  for (const int page_tokens : {16, 32, 48}) report("table", page_tokens, page_tokens * own.token_bytes(), 8);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Of one page of the product's memory: mapped for the first time, taken away, and mapped again when its memory was there already.
bool measure_mapping(const Shape& shape) {
  const KvLayout layout = shape.range();
  const int pages = 128;
  auto reserved = reserve_kv_memory({.ranges = 1, .pages_a_range = pages, .pages_max = pages}, layout.page_bytes);
  if (!reserved.ok()) return false;
  const std::unique_ptr<KvMemory> memory = reserved.take();
  std::vector<double> first, away, again;
  const auto timed = [](std::vector<double>& seconds, const auto& work) {
    const double started = cpu_seconds();
    work();
    seconds.push_back(cpu_seconds() - started);
  };
  bool ok = true;
  for (int page = 0; page < pages; page++) timed(first, [&] { ok &= memory->map(0, page).ok(); });
  for (int page = 0; page < pages; page++) timed(away, [&] { memory->unmap(0, page); });
  for (int page = 0; page < pages; page++) timed(again, [&] { ok &= memory->map(0, page).ok(); });
  std::printf("{\"kind\":\"mapping\",\"shape\":\"%s\",\"pageBytes\":%lld,\"pageTokens\":%d,\"firstUs\":%.2f,\"awayUs\":%.2f,\"againUs\":%.2f}\n", shape.name,
              static_cast<long long>(layout.page_bytes), layout.page_tokens, 1e6 * median(first), 1e6 * median(away), 1e6 * median(again));
  return ok;
}

int run(int argc, char** argv) {
  const int rounds = argc == 2 ? std::atoi(argv[1]) : 0;
  if (rounds < 1) {
    std::fputs("usage: bench_paging ROUNDS\n", stderr);
    return 2;
  }
  const Machine machine = inspect_machine();
  if (!machine.has_avx2) {
    std::fputs("bench_paging: not run, the CPU lacks AVX2\n", stderr);
    return 1;
  }
  const PagingKernels& kernels = machine.has_avx512 ? paging_avx512 : paging_avx2;
  for (const Shape& shape : shapes) {
    measure_waste(shape);
    if (!measure_mapping(shape)) return 1;
    const SpeedBench bench(shape, kernels);
    if (!bench.ready()) {
      std::fprintf(stderr, "bench_paging: no memory for the pools of %s; it takes some 8 GiB\n", shape.name);
      return 1;
    }
    std::printf("{\"kind\":\"pool\",\"shape\":\"%s\",\"bytes\":%lld,\"hugeBytes\":%lld}\n", shape.name, static_cast<long long>(bench.huge().size()),
                static_cast<long long>(bench.huge().huge_bytes()));
    for (const int sequences : batches)
      for (const int tokens : contexts) {
        if (!bench.has_room(sequences, tokens)) continue;
        if (bench.measure(sequences, tokens, rounds)) continue;
        std::fprintf(stderr, "bench_paging: %d sequences of %d tokens: no ranges could be mapped, or they differ from tables over the same pages\n", sequences, tokens);
        return 1;
      }
  }
  return 0;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) { return millrace::bench::run(argc, argv); }
