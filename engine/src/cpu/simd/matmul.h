// y[t][row] = weight[row] . x[t] over lanes L: a band of 16 rows times a tile of up to T tokens at a time. The band is unpacked once a
// tile; each lane keeps the sum of its own row, over the columns in order.
// Bytes: the band once (L1 holds it over the tiles) + the tile's activations.
#pragma once

#include "../kernels.h"
#include "math.h"

namespace millrace {
namespace {

template <typename L>
struct Matmul {
  using F = typename L::F;
  using I = typename L::I;
  static constexpr int parts = band_rows / L::width;
  using Sums = float[L::tokens_a_tile][band_rows];

  template <int T>
  static void tile_q4(const BandQ4* band, const Activations& x, int token, Sums sums) {
    const int blocks = x.columns / block_values;
    for (int part = 0; part < parts; part++) {
      F acc[T];
      for (int t = 0; t < T; t++) acc[t] = L::zero();
      for (int b = 0; b < blocks; b++) {
        const typename L::Nibbles nibbles = L::unpack(band[b], part);
        const F scale = L::load_half(band[b].scale + part * L::width), minimum = L::load_half(band[b].minimum + part * L::width);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const int64_t row = token + t;
          const I dot = L::dot(nibbles, x.quants + row * x.columns + b * block_values);
          acc[t] = L::fma(L::mul(scale, L::all(x.scales[row * blocks + b])), L::from_int(dot), acc[t]);
          acc[t] = L::fma(minimum, L::all(x.sums[row * blocks + b]), acc[t]);
        }
      }
      for (int t = 0; t < T; t++) L::store(sums[t] + part * L::width, acc[t]);
    }
  }

  template <int T>
  static void tile_q8(const BandQ8* band, const Activations& x, int token, Sums sums) {
    const int blocks = x.columns / block_values;
    for (int part = 0; part < parts; part++) {
      F acc[T];
      for (int t = 0; t < T; t++) acc[t] = L::zero();
      for (int b = 0; b < blocks; b++) {
        const F scale = L::load_half(band[b].scale + part * L::width);
        const int8_t* quants[T];
        int32_t totals[T];
        for (int t = 0; t < T; t++) {
          quants[t] = x.quants + int64_t{token + t} * x.columns + b * block_values;
          totals[t] = x.totals[int64_t{token + t} * blocks + b];
        }
        I dots[T];
        L::template dot_q8<T>(band[b], part, quants, totals, dots);
        for (int t = 0; t < T; t++)
          acc[t] = L::fma(L::mul(scale, L::all(x.scales[int64_t{token + t} * blocks + b])), L::from_int(dots[t]), acc[t]);
      }
      for (int t = 0; t < T; t++) L::store(sums[t] + part * L::width, acc[t]);
    }
  }

  template <int T, typename Element, F (*load)(const Element*)>
  static void tile_float(const uint8_t* bytes, const Activations& x, int token, Sums sums) {
    const Element* band = reinterpret_cast<const Element*>(bytes);
    const float* values = x.values + int64_t{token} * x.columns;
    F acc[T][parts];
    for (int t = 0; t < T; t++)
      for (int part = 0; part < parts; part++) acc[t][part] = L::zero();
    for (int column = 0; column < x.columns; column++)
      for (int part = 0; part < parts; part++) {
        const F weight = load(band + column * band_rows + part * L::width);
        for (int t = 0; t < T; t++) acc[t][part] = L::fma(weight, L::all(values[int64_t{t} * x.columns + column]), acc[t][part]);
      }
    for (int t = 0; t < T; t++)
      for (int part = 0; part < parts; part++) L::store(sums[t] + part * L::width, acc[t][part]);
  }

  template <int T>
  static void tile(const PackedMatrix& weight, int band, const Activations& x, int token, Sums sums) {
    const uint8_t* bytes = weight.band(band);
    switch (weight.packing) {
      case Packing::q4:
        return tile_q4<T>(reinterpret_cast<const BandQ4*>(bytes), x, token, sums);
      case Packing::q8:
        return tile_q8<T>(reinterpret_cast<const BandQ8*>(bytes), x, token, sums);
      case Packing::f32:
        return tile_float<T, float, L::load>(bytes, x, token, sums);
      case Packing::f16:
        return tile_float<T, uint16_t, L::load_half>(bytes, x, token, sums);
      case Packing::bf16:
        return tile_float<T, uint16_t, L::load_bfloat>(bytes, x, token, sums);
    }
  }

  // Calls body(token, count, tile function) for tiles that cover [0, tokens).
  template <typename Body>
  static void for_tiles(int tokens, const Body& body) {
    int token = 0;
    if constexpr (L::tokens_a_tile >= 8)
      for (; token + 8 <= tokens; token += 8) body(token, 8, tile<L::tokens_a_tile>);
    for (; token + 4 <= tokens; token += 4) body(token, 4, tile<4>);
    switch (tokens - token) {
      case 3:
        return body(token, 3, tile<3>);
      case 2:
        return body(token, 2, tile<2>);
      case 1:
        return body(token, 1, tile<1>);
    }
  }

  template <bool add>
  static void matmul(const MatmulTask& task) {
    for (int band = task.band_begin; band < task.band_end; band++) {
      const int rows = task.weight->rows - band * band_rows < band_rows ? task.weight->rows - band * band_rows : band_rows;
      for_tiles(task.tokens, [&](int token, int count, auto* tile) {
        alignas(64) Sums sums;
        tile(*task.weight, band, task.x, token, sums);
        for (int t = 0; t < count; t++) {
          float* y = task.y + (token + t) * task.stride + band * band_rows;
          if (rows == band_rows)
            for (int part = 0; part < parts; part++) {
              const F sum = L::load(sums[t] + part * L::width);
              L::store(y + part * L::width, add ? L::add(L::load(y + part * L::width), sum) : sum);
            }
          else
            for (int row = 0; row < rows; row++) y[row] = add ? y[row] + sums[t][row] : sums[t][row];
        }
      });
    }
  }

  static void gated(const MatmulTask& task) {
    const int outputs = task.weight->rows / 2;
    for (int pair = task.band_begin; pair < task.band_end; pair++) {
      const int rows = outputs - pair * band_rows < band_rows ? outputs - pair * band_rows : band_rows;
      for_tiles(task.tokens, [&](int token, int count, auto* tile) {
        alignas(64) Sums gate;
        alignas(64) Sums up;
        tile(*task.weight, 2 * pair, task.x, token, gate);
        tile(*task.weight, 2 * pair + 1, task.x, token, up);
        for (int t = 0; t < count; t++) {
          float* y = task.y + (token + t) * task.stride + pair * band_rows;
          for (int part = 0; part < parts; part++) {
            const F g = L::load(gate[t] + part * L::width), u = L::load(up[t] + part * L::width);
            const F silu = L::div(g, L::add(L::all(1), exponential<L>(L::sub(L::zero(), g))));
            L::store(gate[t] + part * L::width, L::mul(silu, u));
          }
          for (int row = 0; row < rows; row++) y[row] = gate[t][row];
        }
      });
    }
  }
};

}  // namespace
}  // namespace millrace
