// The kernels between matrices: what is done to each token's own values. Conventions as in kernels.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "../format/types.h"
#include "kernels.h"

namespace millrace {

// One RoPE of the model, and its turns in this step.
struct DeviceRope {
  const float* frequencies = nullptr;  // [pairs], in radians a position
  float2* turns = nullptr;             // [tokens][pairs], the angle's cosine and sine times `factor`
  int pairs = 0;
  float factor = 1;
  bool halves = false;                 // pairs are (i, i + pairs), not (2i, 2i + 1)
};
constexpr int ropes_max = 4;
struct DeviceRopes {
  DeviceRope rope[ropes_max];
  int count = 0;
};

// embed.cu: x = embedding's row times scale, float32 [tokens][hidden]; the turns of every RoPE; and each token's id into its slot's history. A
// token without an id is what its slot sampled last.
struct EmbedTask {
  const __nv_bfloat16* embedding = nullptr;  // [vocabulary][columns]
  int hidden = 0, columns = 0;
  float scale = 1;
  DeviceRopes ropes;
  const int32_t* last_tokens = nullptr;  // [slots]
  int32_t* history = nullptr;            // [slots][history_stride]
  int64_t history_stride = 0;
  float* x = nullptr;
  NormOutput next;                       // of x; see kernels.h
};
void embed(cudaStream_t stream, const StepView& step, const EmbedTask& task);

struct DeviceNorm {
  const float* weight = nullptr;  // [n]; none: values stay as they are
  const float* bias = nullptr;    // [n], of layer norms alone
  bool is_layer = false;
  float epsilon = 0;
  int n = 0;
};

// Values for a matrix of E4M3, [tokens][columns, padded], and a scale for each token.
struct Quantized {
  uint8_t* values = nullptr;
  float* scales = nullptr;
};

// How many values a token may have for norm.cu, whose threads keep them in registers.
constexpr int norm_values_max = 16384;
// norm.cu: out[t] = norm(x[t]) for each token, or for each sample that of its token; [tokens or samples][padded_columns(n)].
enum class Rows : uint8_t { tokens, samples };
void normalize(cudaStream_t stream, const StepView& step, Rows rows, const DeviceNorm& norm, const float* x, int n, __nv_bfloat16* out,
               Activations as = Activations::bfloat16);
// The same for each token, in E4M3.
void normalize(cudaStream_t stream, const StepView& step, const DeviceNorm& norm, const float* x, int n, const Quantized& out);
// x[t] += norm(added[t]).
void add_normed(cudaStream_t stream, const StepView& step, const DeviceNorm& norm, const float* added, int n, float* x);

// heads.cu: what follows the matrix of q, k and v: norms of q and k, RoPE on both, q times query_scale, k and v into KV memory.
struct HeadsTask {
  const float* qkv = nullptr;  // [tokens][(heads + 2 kv_heads) * head_dim]
  int heads = 0, kv_heads = 0, head_dim = 0;
  DeviceNorm q_norm, k_norm;   // over each head, or over all heads at once where n is that wide
  DeviceRope rope;
  float query_scale = 1;
  KvView kv;
  __nv_bfloat16* q = nullptr;  // [tokens][heads * head_dim], stored as keys want it
};
void finish_heads(cudaStream_t stream, const StepView& step, const HeadsTask& task);

// kv_scales.cu: for each KV head of a layer a power of two with which no key, and one with which no value, is more than 448 times it, whatever the tokens: as the
// weights bound them, behind a norm of the layer's input or of the keys. Without a norm, an input is taken to have a root mean square of up to unnormed_rms; only
// values that so exceed what the weights bound may be cut off at 448 times the scale. Up to 2.2 times what the bound asks for, 3.1 times where a RoPE turns keys.
constexpr float unnormed_rms = 4;
struct KvScalesTask {
  DeviceMatrix w;               // [(heads + 2 kv_heads) * head_dim][columns], q rows, k rows, v rows
  const float* bias = nullptr;  // of its rows, or none
  DeviceNorm norm, k_norm;      // of x, of w.columns or fewer without padding; of keys, as HeadsTask has it
  int columns = 0;              // of w, without padding
  int heads = 0, kv_heads = 0, head_dim = 0;
  float turn_factor = 0;        // that the turns of a key's RoPE have; 0: nothing is turned
  float *key_scales = nullptr, *value_scales = nullptr;  // [kv_heads]
};
void scale_kv(cudaStream_t stream, const KvScalesTask& task);

// gate.cu: out = activation(gate) * up, of wide [tokens][ffn gate values, ffn up values], or activation(up) of [tokens][ffn]; bias is as wide.
struct GateTask {
  const void* wide = nullptr;  // float32, or bfloat16
  bool is_float32 = true;
  const float* bias = nullptr;
  Activation activation = Activation::silu;
  bool is_gated = true;
  int ffn = 0;
  __nv_bfloat16* out = nullptr;  // [tokens][padded_columns(ffn)]
  Activations as = Activations::bfloat16;
  Quantized quantized;           // where it is to have them in E4M3, beside or instead of `out`
};
void gate(cudaStream_t stream, int tokens, const GateTask& task);
// y[t] += bias, and then, if soft_cap is not 0, soft_cap * tanh(y / soft_cap); bias may be none.
void finish_rows(cudaStream_t stream, int tokens, const float* bias, float soft_cap, float* y, int n, int64_t stride);

// quantize.cu: x [rows][columns] in E4M3; columns are a multiple of column_multiple.
void quantize_rows(cudaStream_t stream, const __nv_bfloat16* x, int rows, int columns, uint8_t* quants, float* scales);

// q4.cu. pack_q4: `count` rows of blocks as a file has them, each of so many columns, become rows from first_row on of w, whose memory was zero.
// unpack_q4: `count` rows of w from first_row on, a multiple of q4_rows, as bfloat16 [count][w.columns].
constexpr bool is_q4_source(Type type) { return type == Type::q4_0 || type == Type::q4_1 || type == Type::q4_k; }
void pack_q4(cudaStream_t stream, Type type, const void* blocks, int64_t count, int64_t columns, const DeviceMatrix& w, int64_t first_row);
void unpack_q4(cudaStream_t stream, const DeviceMatrix& w, int first_row, int count, __nv_bfloat16* values);

// experts.cu: x += the sum over each token's experts of weight * expert(input). Right, but not tuned: an expert's matrices are read once for
// each eight of its tokens, by plain multiplications.
struct ExpertsTask {
  int experts = 0, used = 0, hidden = 0, ffn = 0;
  bool is_normalized = false, is_gated = true;
  Activation activation = Activation::silu;
  const float* scores = nullptr;      // [tokens][experts], the router's
  DeviceMatrix wide;                  // [experts][2 * ffn, or ffn][columns]
  const float* wide_bias = nullptr;   // [experts][2 * ffn, or ffn], or none
  DeviceMatrix down;                  // [experts][hidden][columns]
  const float* down_bias = nullptr;   // [experts][hidden], or none
  const __nv_bfloat16* input = nullptr;  // [tokens][padded_columns(hidden)]
  // Room, for tokens * used entries: a token at one of its experts, ordered by expert and then by token.
  int32_t* chosen = nullptr;          // [tokens][used], the best first
  float* weights = nullptr;           // [tokens][used]
  int32_t* entries = nullptr;         // [tokens][used], each one's entry
  int32_t* entry_tokens = nullptr;    // [entries]
  int32_t* first = nullptr;           // [experts + 1], the entries of each expert
  float* wide_values = nullptr;       // [entries][2 * ffn, or ffn]
  __nv_bfloat16* gated = nullptr;     // [entries][padded_columns(ffn)]
  float* added = nullptr;             // [entries][hidden]
};
void run_experts(cudaStream_t stream, const StepView& step, const ExpertsTask& task, float* x);

}  // namespace millrace
