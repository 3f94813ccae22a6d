// The arithmetic of a CPU, one table for each set of instructions. Each kernel works for one thread on what it is given; reference.cpp
// says in plain C++ what each must compute, and the others are tested against it.
#pragma once

#include <cstdint>

#include "../base/machine.h"
#include "../kv/layout.h"
#include "../model/activation.h"
#include "engine.h"
#include "pack.h"

namespace millrace {

// A block whose largest magnitude is less than this counts as zeros: its scale would be too small to divide by.
constexpr float quantized_magnitude_min = 0x1p-100f;

// Activations of one token beside a quantized matrix: blocks of 32, value = scale * quant.
struct QuantizedRow {
  int8_t* quants;   // [columns]
  float* scales;    // [columns / 32]
  float* sums;      // [columns / 32], of the block's values: scale * total
  int32_t* totals;  // [columns / 32], of the block's quants
};

// The activations of a step: float32, and quantized beside them where a quantized matrix will read them.
struct Activations {
  const float* values = nullptr;  // [tokens][columns]
  const int8_t* quants = nullptr;
  const float* scales = nullptr;
  const float* sums = nullptr;
  const int32_t* totals = nullptr;
  int columns = 0;
};

// y[t][row] for the rows of bands [band_begin, band_end) and tokens [0, tokens).
struct MatmulTask {
  const PackedMatrix* weight;
  Activations x;
  int tokens;
  int band_begin, band_end;
  float* y;       // [tokens][stride]
  int64_t stride;
};

// Up to queries_max queries (several heads of one KV head, several tokens) over positions [begin, end) of one sequence; begin is a
// multiple of 64. Writes each query's partial result: the largest score, the sum of exponentials, then their weighted values.
constexpr int queries_max = 6;
constexpr int chunk_tokens = 64;

struct AttendTask {
  const float* queries[queries_max];  // [head_dim] each, scaled
  int first[queries_max];             // positions that the query sees: first to visible - 1
  int visible[queries_max];
  float* partial[queries_max];        // [2 + head_dim] each
  int count;
  const KvLayout* layout;
  const uint8_t* base;  // of the slot and the layer's group
  int layer, kv_head;   // the layer counts in its group
  int begin, end;
  float soft_cap;       // scores become soft_cap * tanh(score / soft_cap); 0: they stay
};

struct Kernels {
  const char* name;

  // y = x / rms(x) * weight over n values; n a multiple of 16; y may be x.
  void (*norm)(const float* x, const float* weight, float epsilon, int n, float* y);
  // y = (x - mean(x)) / deviation(x) * weight + bias; likewise.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, int n, float* y);
  // y += scale * x; n a multiple of 16.
  void (*add_scaled)(float* y, const float* x, float scale, int n);
  // out = activation(gate) * up, or activation(up) where gate is null; n a multiple of 16; out may be either.
  void (*gate)(Activation activation, const float* gate, const float* up, int n, float* out);
  // x = cap * tanh(x / cap), over any n.
  void (*soft_cap)(float* x, int n, float cap);
  // Rounds each block of 32 to 8 bits, symmetric, the largest magnitude at 127; what is no number counts as 0.
  void (*quantize)(const float* x, int n, QuantizedRow out);

  void (*matmul)(const MatmulTask& task);      // y = weight . x
  void (*matmul_add)(const MatmulTask& task);  // y += weight . x
  // The weight's bands take turns, gate then up; y = silu(gate . x) * (up . x), band_begin and band_end counting pairs.
  void (*matmul_gated)(const MatmulTask& task);

  // Turns the pairs (2i, 2i + 1) of x, i < pairs; turns holds cos, sin a pair. Then multiplies all of [head_dim] by scale.
  void (*rope)(float* x, const float* turns, int pairs, int head_dim, float scale);
  // Likewise the pairs (i, i + pairs); turns holds all cos, then all sin.
  void (*rope_halves)(float* x, const float* turns, int pairs, int head_dim, float scale);
  // Writes one token's key or value of one head into its page. What a float16 cannot hold becomes the largest that it can: an infinity
  // in memory would reach even those who give it no weight. In 8 bits, the scale puts the largest magnitude at 127, and what is no number
  // counts as 0.
  void (*store_key)(const float* key, const KvLayout& layout, uint8_t* page_head, int position_in_page);
  void (*store_value)(const float* value, const KvLayout& layout, uint8_t* page_head, int position_in_page);

  void (*attend)(const AttendTask& task);
  // into = into + part, both partial results; `into` with a sum of 0 is empty. The order of merging is the caller's to fix.
  void (*merge)(float* into, const float* part, int head_dim);
  // out = weighted values / sum.
  void (*finish)(const float* partial, int head_dim, float* out);
};

// The table of a set of kernels; null where this build, or the CPU, lacks it.
const Kernels* kernels_of(KernelSet set, const Machine& machine);

extern const Kernels reference_kernels;
extern const Kernels avx2_kernels;   // only in builds for x86
const Kernels& avx512_table();       // likewise

}  // namespace millrace
