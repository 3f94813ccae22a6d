// The kernels in plain C++: what each computes, said once without tricks. Slow, exact about order, and the yardstick of the others.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "reference.h"

namespace millrace {
namespace {

void quantize(const float* x, int n, QuantizedRow out) {
  for (int block = 0; block < n / block_values; block++) {
    const float* values = x + block * block_values;
    float largest = 0;
    for (int i = 0; i < block_values; i++) largest = std::max(largest, std::fabs(values[i]));
    if (largest < quantized_magnitude_min) largest = 0;
    const float inverse = largest > 0 ? 127 / largest : 0;
    int32_t total = 0;
    for (int i = 0; i < block_values; i++) {
      const float scaled = values[i] * inverse;
      const int quant = std::isnan(scaled) ? 0 : static_cast<int>(std::nearbyint(scaled));
      out.quants[block * block_values + i] = static_cast<int8_t>(quant);
      total += quant;
    }
    out.scales[block] = largest / 127;
    out.sums[block] = out.scales[block] * static_cast<float>(total);
    out.totals[block] = total;
  }
}

// One band of 16 rows times one token: sums[row].
void band_q4(const BandQ4* band, const Activations& x, int64_t token, int blocks, float* sums) {
  const int8_t* quants = x.quants + token * x.columns;
  const float* scales = x.scales + token * blocks;
  const float* block_sums = x.sums + token * blocks;
  for (int b = 0; b < blocks; b++)
    for (int row = 0; row < band_rows; row++) {
      int32_t dot = 0;
      for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++) {
          const uint8_t pair = band[b].nibbles[j][4 * row + i];
          dot += (pair & 15) * quants[b * block_values + 4 * j + i] + (pair >> 4) * quants[b * block_values + 16 + 4 * j + i];
        }
      sums[row] += half_to_float(band[b].scale[row]) * scales[b] * static_cast<float>(dot);
      sums[row] += half_to_float(band[b].minimum[row]) * block_sums[b];
    }
}

void band_q8(const BandQ8* band, const Activations& x, int64_t token, int blocks, float* sums) {
  const int8_t* quants = x.quants + token * x.columns;
  const float* scales = x.scales + token * blocks;
  for (int b = 0; b < blocks; b++)
    for (int row = 0; row < band_rows; row++) {
      int32_t dot = 0;
      for (int j = 0; j < 8; j++)
        for (int i = 0; i < 4; i++) dot += band[b].quants[j][4 * row + i] * quants[b * block_values + 4 * j + i];
      sums[row] += half_to_float(band[b].scale[row]) * scales[b] * static_cast<float>(dot);
    }
}

// Compilers see vectors in a loop over rows, and none once it is unrolled; sums of its own cannot lie within x.
template <typename Element, float (*convert)(Element)>
void band_float(const Element* band, const float* x, int columns, float* sums) {
  float totals[band_rows] = {};
  for (int column = 0; column < columns; column++)
#pragma GCC unroll 1
    for (int row = 0; row < band_rows; row++) totals[row] += convert(band[column * band_rows + row]) * x[column];
  std::copy(totals, totals + band_rows, sums);
}

float same(float value) { return value; }

void band_sums(const MatmulTask& task, int band, int token, float* sums) {
  std::fill(sums, sums + band_rows, 0.0f);
  const int columns = task.weight->columns, blocks = columns / block_values;
  const uint8_t* bytes = task.weight->band(band);
  const float* x = task.x.values + int64_t{token} * columns;
  switch (task.weight->packing) {
    case Packing::q4:
      return band_q4(reinterpret_cast<const BandQ4*>(bytes), task.x, token, blocks, sums);
    case Packing::q8:
      return band_q8(reinterpret_cast<const BandQ8*>(bytes), task.x, token, blocks, sums);
    case Packing::f32:
      return band_float<float, same>(reinterpret_cast<const float*>(bytes), x, columns, sums);
    case Packing::f16:
      return band_float<uint16_t, half_to_float>(reinterpret_cast<const uint16_t*>(bytes), x, columns, sums);
    case Packing::bf16:
      return band_float<uint16_t, bfloat_to_float>(reinterpret_cast<const uint16_t*>(bytes), x, columns, sums);
  }
}

template <bool add>
void matmul(const MatmulTask& task) {
  for (int band = task.band_begin; band < task.band_end; band++)
    for (int token = 0; token < task.tokens; token++) {
      float sums[band_rows];
      band_sums(task, band, token, sums);
      float* y = task.y + token * task.stride + band * band_rows;
      const int rows = std::min(band_rows, task.weight->rows - band * band_rows);
      for (int row = 0; row < rows; row++) y[row] = add ? y[row] + sums[row] : sums[row];
    }
}

void matmul_gated(const MatmulTask& task) {
  const int outputs = task.weight->rows / 2;
  for (int pair = task.band_begin; pair < task.band_end; pair++)
    for (int token = 0; token < task.tokens; token++) {
      float gate[band_rows], up[band_rows];
      band_sums(task, 2 * pair, token, gate);
      band_sums(task, 2 * pair + 1, token, up);
      float* y = task.y + token * task.stride + pair * band_rows;
      const int rows = std::min(band_rows, outputs - pair * band_rows);
      for (int row = 0; row < rows; row++) y[row] = gate[row] / (1 + std::exp(-gate[row])) * up[row];
    }
}

constexpr float half_max = 65504;

int64_t key_index(const KvLayout&, int position, int dim) { return int64_t{dim} * tile_tokens + position % tile_tokens; }
int64_t value_index(const KvLayout& layout, int position, int dim) { return int64_t{position % tile_tokens} * layout.head_dim + dim; }
using IndexInTile = int64_t (*)(const KvLayout& layout, int position, int dim);

template <typename Byte>
Byte* tile_of(const KvLayout& layout, Byte* page_head, int position) {
  return page_head + position / tile_tokens * layout.tile_bytes();
}

// Of the token at `position`, where the tile's elements are in 8 bits.
template <typename Byte>
auto* scale_of(const KvLayout& layout, Byte* tile, int position) {
  using Half = std::conditional_t<std::is_const_v<Byte>, const uint16_t, uint16_t>;
  return reinterpret_cast<Half*>(tile + tile_tokens * layout.head_dim) + position % tile_tokens;
}

// Values of one token as bytes; the result is their scale.
uint16_t quantize_token(const float* x, int n, int8_t* quants) {
  float largest = 0;
  for (int i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t scale = float_to_half(std::min(largest / 127, half_max));
  const float inverse = scale == 0 ? 0 : 1 / half_to_float(scale);
  for (int i = 0; i < n; i++) {
    const float scaled = x[i] * inverse;
    quants[i] = std::isnan(scaled) ? int8_t{0} : static_cast<int8_t>(std::nearbyint(std::clamp(scaled, -127.0f, 127.0f)));
  }
  return scale;
}

template <IndexInTile index>
void store(const float* x, const KvLayout& layout, uint8_t* page_head, int position) {
  uint8_t* tile = tile_of(layout, page_head, position);
  std::vector<int8_t> quants(static_cast<size_t>(layout.head_dim));
  if (layout.element == KvElement::int8) *scale_of(layout, tile, position) = quantize_token(x, layout.head_dim, quants.data());
  for (int dim = 0; dim < layout.head_dim; dim++) {
    const int64_t at = index(layout, position, dim);
    if (layout.element == KvElement::float32)
      reinterpret_cast<float*>(tile)[at] = x[dim];
    else if (layout.element == KvElement::float16)
      reinterpret_cast<uint16_t*>(tile)[at] = float_to_half(std::clamp(x[dim], -half_max, half_max));
    else
      reinterpret_cast<int8_t*>(tile)[at] = quants[static_cast<size_t>(dim)];
  }
}

template <IndexInTile index>
float element(const KvLayout& layout, const uint8_t* page_head, int position, int dim) {
  const uint8_t* tile = tile_of(layout, page_head, position);
  const int64_t at = index(layout, position, dim);
  if (layout.element == KvElement::float32) return reinterpret_cast<const float*>(tile)[at];
  if (layout.element == KvElement::float16) return half_to_float(reinterpret_cast<const uint16_t*>(tile)[at]);
  return half_to_float(*scale_of(layout, tile, position)) * static_cast<float>(reinterpret_cast<const int8_t*>(tile)[at]);
}

void merge(float* into, const float* part, int head_dim) {
  if (part[1] == 0) return;
  if (into[1] == 0) {
    std::copy(part, part + 2 + head_dim, into);
    return;
  }
  const float largest = std::max(into[0], part[0]);
  const float keep = std::exp(into[0] - largest), take = std::exp(part[0] - largest);
  into[0] = largest;
  into[1] = into[1] * keep + part[1] * take;
  for (int dim = 0; dim < head_dim; dim++) into[2 + dim] = into[2 + dim] * keep + part[2 + dim] * take;
}

// One query over one chunk of positions [begin, end), all of them seen.
void attend_chunk(const AttendTask& task, int query, int begin, int end, float* part) {
  const KvLayout& layout = *task.layout;
  const auto page_head = [&](int position, bool value) {
    return task.base + position / layout.page_tokens * layout.page_bytes + layout.offset(task.layer, value, task.kv_head);
  };
  float scores[chunk_tokens];
  part[0] = -std::numeric_limits<float>::infinity();
  for (int position = begin; position < end; position++) {
    float score = 0;
    for (int dim = 0; dim < layout.head_dim; dim++)
      score += task.queries[query][dim] * element<key_index>(layout, page_head(position, false), position % layout.page_tokens, dim);
    if (task.soft_cap != 0) reference_soft_cap(&score, 1, task.soft_cap);
    scores[position - begin] = score;
    part[0] = std::max(part[0], score);
  }
  std::fill(part + 1, part + 2 + layout.head_dim, 0.0f);
  for (int position = begin; position < end; position++) {
    const float weight = std::exp(scores[position - begin] - part[0]);
    part[1] += weight;
    for (int dim = 0; dim < layout.head_dim; dim++)
      part[2 + dim] += weight * element<value_index>(layout, page_head(position, true), position % layout.page_tokens, dim);
  }
}

void attend(const AttendTask& task) {
  std::vector<float> part(2 + task.layout->head_dim);
  for (int query = 0; query < task.count; query++) {
    std::fill(task.partial[query], task.partial[query] + part.size(), 0.0f);
    const int end = std::min(task.end, task.visible[query]);
    for (int begin = task.begin; begin < end; begin += chunk_tokens) {
      const int from = std::max(begin, task.first[query]), to = std::min(end, begin + chunk_tokens);
      if (from >= to) continue;
      attend_chunk(task, query, from, to, part.data());
      merge(task.partial[query], part.data(), task.layout->head_dim);
    }
  }
}

void finish(const float* partial, int head_dim, float* out) {
  for (int dim = 0; dim < head_dim; dim++) out[dim] = partial[2 + dim] / partial[1];
}

}  // namespace

const Kernels reference_kernels = {.name = "reference",
                                   .norm = reference_norm,
                                   .layer_norm = reference_layer_norm,
                                   .add_scaled = reference_add_scaled,
                                   .gate = reference_gate,
                                   .soft_cap = reference_soft_cap,
                                   .quantize = quantize,
                                   .matmul = matmul<false>,
                                   .matmul_add = matmul<true>,
                                   .matmul_gated = matmul_gated,
                                   .rope = reference_rope,
                                   .rope_halves = reference_rope_halves,
                                   .store_key = store<key_index>,
                                   .store_value = store<value_index>,
                                   .attend = attend,
                                   .merge = merge,
                                   .finish = finish};

}  // namespace millrace
