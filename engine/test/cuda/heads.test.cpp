// Heads between their matrix and attention against plain double precision: norms, turns, scales, and where keys and values end, in bfloat16 and in
// E4M3.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda/memory.h"
#include "cuda/vectors.h"
#include "support/cuda_step.h"
#include "support/cuda_values.h"
#include "support/random.h"
#include "support/test.h"

using namespace millrace;
using test::bf16_error, test::check_near, test::normals, test::Random;

TEST("heads are normed, turned, scaled and stored where attention finds them") {
  test::need_gpu();
  Random random;
  for (const int head_dim : {16, 64, 80, 128})
    for (const bool halves : {false, true})
      for (const int normed_width : {0, 1, 2}) {  // none, each head's, all heads'
        const int kv_heads = random.between(1, 3), group = random.between(1, 9), heads = kv_heads * group, tokens = 3, page_tokens = 16;
        const int rows = (heads + 2 * kv_heads) * head_dim, pairs = random.chance(0.5) ? head_dim / 2 : head_dim / 4;
        test::CudaStep step(tokens, 2, {5, 40, 17});
        const std::vector<float> qkv = normals(random, static_cast<size_t>(tokens * rows)), frequencies = normals(random, static_cast<size_t>(pairs), 0.3f);
        const auto d_qkv = test::upload(qkv), d_frequencies = test::upload(frequencies);
        const int q_n = normed_width == 2 ? heads * head_dim : head_dim, k_n = normed_width == 2 ? kv_heads * head_dim : head_dim;
        const std::vector<float> q_weight = normals(random, static_cast<size_t>(q_n)), k_weight = normals(random, static_cast<size_t>(k_n));
        const auto d_q_weight = test::upload(q_weight), d_k_weight = test::upload(k_weight);
        DeviceArray<float2> turns(static_cast<size_t>(tokens * pairs));
        DeviceArray<float> x(static_cast<size_t>(tokens * 16));
        DeviceArray<__nv_bfloat16> embedding(64 * 64), q(static_cast<size_t>(tokens * heads * head_dim));
        DeviceArray<int32_t> last(4), history(4 * 64);
        EmbedTask task{.embedding = embedding.get(), .hidden = 16, .columns = 64, .last_tokens = last.get(), .history = history.get(), .history_stride = 64, .x = x.get()};
        task.ropes.count = 1;
        task.ropes.rope[0] = {d_frequencies.get(), turns.get(), pairs, 1.25f, halves};
        embed(nullptr, step.view(), task);

        const int64_t head_bytes = int64_t{page_tokens} * head_dim * 2, page_bytes = 2 * kv_heads * head_bytes + 256, slot_bytes = page_bytes * 4;
        DeviceArray<uint8_t> kv(static_cast<size_t>(slot_bytes * 4));
        HeadsTask work{.qkv = d_qkv.get(), .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = task.ropes.rope[0], .query_scale = 0.5f, .q = q.get()};
        work.kv = {kv.get(), slot_bytes, page_bytes, 128, 128 + kv_heads * head_bytes, head_bytes, page_tokens};
        if (normed_width > 0) work.q_norm = {d_q_weight.get(), nullptr, false, 1e-6f, q_n};
        if (normed_width > 0) work.k_norm = {d_k_weight.get(), nullptr, false, 1e-6f, k_n};
        finish_heads(nullptr, step.view(), work);

        const std::vector<float> got = test::download(q);
        std::vector<uint8_t> bytes(kv.bytes());
        check(cudaMemcpy(bytes.data(), kv.get(), bytes.size(), cudaMemcpyDeviceToHost), "reading");
        for (int t = 0; t < tokens; t++) {
          const StepToken& token = step.tokens[static_cast<size_t>(t)];
          const auto right = [&](int first_row, int head, int n, const std::vector<float>& weight, bool is_turned, double scale) {
            const size_t at = static_cast<size_t>(t * rows + (first_row + head) * head_dim), whole = static_cast<size_t>(t * rows + first_row * head_dim);
            std::vector<double> values;
            double squares = 0;
            for (int i = 0; i < n; i++) squares += std::pow(qkv[n == head_dim ? at + i : whole + i], 2) / n;
            for (int i = 0; i < head_dim; i++)
              values.push_back(qkv[at + i] * (normed_width == 0 || !is_turned ? 1 : weight[n == head_dim ? i : head * head_dim + i] / std::sqrt(squares + 1e-6)));
            for (int i = 0; i < pairs && is_turned; i++) {
              const int a = halves ? i : 2 * i, b = halves ? i + pairs : 2 * i + 1;
              const double angle = static_cast<double>(token.position) * frequencies[static_cast<size_t>(i)], c = 1.25 * std::cos(angle), s = 1.25 * std::sin(angle);
              const double first = values[a], second = values[b];
              values[a] = first * c - second * s;
              values[b] = first * s + second * c;
            }
            for (double& value : values) value *= scale;
            return values;
          };
          for (int head = 0; head < heads; head++) {
            const auto at = got.begin() + (t * heads + head) * head_dim;
            check_near({at, at + head_dim}, right(0, head, q_n, q_weight, true, 0.5), bf16_error, "query");
          }
          for (int head = 0; head < kv_heads; head++)
            for (const bool is_value : {false, true}) {
              const uint8_t* page = bytes.data() + token.slot * slot_bytes + token.position / page_tokens * page_bytes + head * head_bytes;
              const auto* stored = reinterpret_cast<const __nv_bfloat16*>(page + (is_value ? work.kv.value_offset : work.kv.key_offset)) + token.position % page_tokens * head_dim;
              std::vector<float> values;
              for (int i = 0; i < head_dim; i++) values.push_back(__bfloat162float(stored[i]));
              check_near(values, right(is_value ? heads + kv_heads : heads, head, k_n, k_weight, !is_value, 1), bf16_error, is_value ? "value" : "key");
            }
        }
      }
}

namespace {

constexpr int page_tokens = 32;

// One token's heads with given numbers, in memory of one page.
struct HeadsCase {
  int heads, kv_heads, head_dim, position, pairs;
  bool halves;
  std::vector<float> qkv, frequencies, key_scales, value_scales;

  struct Kept {
    std::vector<uint16_t> q;
    std::vector<uint8_t> bytes;
    int64_t key_offset, value_offset, head_bytes;

    // A KV head's keys or values of all positions.
    const uint8_t* rows(bool is_value, int head) const { return bytes.data() + (is_value ? value_offset : key_offset) + head * head_bytes; }
  };
  Kept run(KvElement element) const {
    test::CudaStep step(1, 1, {position});
    const auto d_qkv = test::upload(qkv), d_frequencies = test::upload(frequencies);
    const DeviceArray<float2> turns(static_cast<size_t>(pairs));
    const DeviceArray<float> x(16);
    const DeviceArray<__nv_bfloat16> embedding(64 * 64), q(static_cast<size_t>(heads * head_dim));
    const DeviceArray<int32_t> last(4), history(4 * 64);
    EmbedTask embedded{.embedding = embedding.get(), .hidden = 16, .columns = 64, .last_tokens = last.get(), .history = history.get(), .history_stride = 64, .x = x.get()};
    embedded.ropes.count = 1;
    embedded.ropes.rope[0] = {d_frequencies.get(), turns.get(), pairs, 1, halves};
    embed(nullptr, step.view(), embedded);
    const int64_t head_bytes = page_tokens * head_dim * bytes_of(element), page_bytes = 2 * kv_heads * head_bytes + 16;
    const DeviceArray<uint8_t> kv(static_cast<size_t>(page_bytes));
    check(cudaMemset(kv.get(), 0xff, kv.bytes()), "filling");
    const auto d_key_scales = test::upload(key_scales), d_value_scales = test::upload(value_scales);
    HeadsTask task{.qkv = d_qkv.get(), .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = embedded.ropes.rope[0], .query_scale = 0.5f, .q = q.get()};
    task.kv = {kv.get(), page_bytes, page_bytes, 16, 16 + kv_heads * head_bytes, head_bytes, page_tokens, element};
    if (element == KvElement::e4m3) task.kv.key_scales = d_key_scales.get(), task.kv.value_scales = d_value_scales.get();
    finish_heads(nullptr, step.view(), task);
    Kept kept{std::vector<uint16_t>(q.count()), test::download(kv), task.kv.key_offset, task.kv.value_offset, head_bytes};
    check(cudaMemcpy(kept.q.data(), q.get(), q.bytes(), cudaMemcpyDeviceToHost), "reading");
    return kept;
  }
};

float half_at(const void* from, int i) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const uint8_t*>(from) + 2 * i, sizeof(bits));
  return __half2float(__ushort_as_half(bits));
}

// A key or value in E4M3 beside what it is in bfloat16. No byte but its own may have been written.
void check_e4m3(const uint8_t* rows, const uint8_t* exact_rows, int head_dim, int position, float scale) {
  for (int d = 0; d < head_dim; d++) {
    const int at = position * head_dim + d;
    const float right = test::float_of(static_cast<uint16_t>(exact_rows[2 * at] | exact_rows[2 * at + 1] << 8)), value = scale * test::e4m3_of(rows[at]);
    CHECK(std::fabs(value - right) <= std::max(std::fabs(right) * 0x1.2p-4f, scale * 0x1.1p-10f), "dimension ", d, ": ", value, ", not ", right);
  }
  for (int at = 0; at < page_tokens * head_dim; at++)
    if (at / head_dim != position) CHECK_EQUAL(int{rows[at]}, 0xff);
}

}  // namespace

TEST("keys and values in E4M3 are what they are in bfloat16, over their heads' scales, and queries float16 in the order of keys") {
  test::need_gpu();
  Random random;
  for (const int head_dim : {16, 48, 64, 80, 128, 256, 512})
    for (const int turned : {0, 1, 2, 3})  // none, pairs of neighbours, halves, and halves of an odd number of pairs
      for (const int position : {0, 13, 30}) {
        const int kv_heads = random.between(1, 3), heads = kv_heads * random.between(1, 9), pairs = turned == 0 ? 0 : turned == 3 ? head_dim / 4 - 1 : head_dim / 2;
        const auto width = static_cast<size_t>((heads + 2 * kv_heads) * head_dim);
        HeadsCase each{heads, kv_heads, head_dim, position, pairs, turned >= 2, normals(random, width, 3), normals(random, static_cast<size_t>(pairs), 0.3f), {}, {}};
        for (auto* scales : {&each.key_scales, &each.value_scales})  // from what just holds the values to what leaves them few bits
          for (int head = 0; head < kv_heads; head++) scales->push_back(std::ldexp(1.0f, random.between(-4, 12)));
        const auto exact = each.run(KvElement::bfloat16), kept = each.run(KvElement::e4m3);
        for (int i = 0; i < heads * head_dim; i++) {
          const float right = test::float_of(exact.q[static_cast<size_t>(i)]), value = half_at(kept.q.data(), half_place(i));
          CHECK(std::fabs(value - right) <= std::max(std::fabs(right) * 0x1p-8f, 0x1p-20f), "query ", i, ": ", value, ", not ", right);
        }
        for (int head = 0; head < kv_heads; head++)
          for (const bool is_value : {false, true})
            check_e4m3(kept.rows(is_value, head), exact.rows(is_value, head), head_dim, position, (is_value ? each.value_scales : each.key_scales)[static_cast<size_t>(head)]);
      }
}

TEST("in E4M3, what is too large becomes the largest, and zeros stay zeros") {
  test::need_gpu();
  const int head_dim = 64, position = 5;
  HeadsCase each{1, 1, head_dim, position, 0, false, std::vector<float>(3 * head_dim), {}, {0.25f}, {2}};
  for (int d = 0; d < head_dim; d++) {
    each.qkv[static_cast<size_t>(d)] = d % 2 == 0 ? 1e30f : -1e30f;
    each.qkv[static_cast<size_t>(head_dim + d)] = d % 2 == 0 ? 0 : 113;  // 448 * 0.25 and a bit
    each.qkv[static_cast<size_t>(2 * head_dim + d)] = d % 2 == 0 ? -1e30f : 1e-30f;
  }
  const auto kept = each.run(KvElement::e4m3);
  for (int d = 0; d < head_dim; d++) {
    CHECK_EQUAL(test::e4m3_of(kept.rows(false, 0)[position * head_dim + d]), d % 2 == 0 ? 0.0f : 448.0f);
    CHECK_EQUAL(test::e4m3_of(kept.rows(true, 0)[position * head_dim + d]), d % 2 == 0 ? -448.0f : 0.0f);
    CHECK_EQUAL(half_at(kept.q.data(), half_place(d)), d % 2 == 0 ? 65504.0f : -65504.0f);
  }
}
