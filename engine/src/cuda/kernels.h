// What the CUDA backend launches, one operator or a part of one each. All run in the stream's order and return at once; pointers are to
// device memory. No length, address or position is an argument where it changes from step to step: kernels read it from the step's work
// list on the device (step.h), so that a captured graph serves every step of its size.
//
// Activations that matrices read are bfloat16, or what takes its place (Activations), [tokens][stride], where the stride is the width rounded up to a multiple of
// column_multiple and what lies between is zero. The residual stream, matrices' results and logits are float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../kv/layout.h"
#include "../model/activation.h"
#include "q4.h"
#include "step.h"

namespace millrace {

constexpr int column_multiple = 64;
constexpr int padded_columns(int columns) { return (columns + column_multiple - 1) / column_multiple * column_multiple; }

// What activations that matrices read are stored as. E4M3 and four bits become float16 in fewer instructions than bfloat16: so our kernels read,
// beside such matrices, float16 of a sixteenth of each value, in the same 16 bits. That holds values up to a million (larger ones stay there), with more
// bits than bfloat16 down to 2^-10 and as many down to 2^-13.
enum class Activations : uint8_t { bfloat16, half };
constexpr float half_divisor = 16;
// Halves of each 16 columns lie as those of 0 1 4 5 8 9 12 13 2 3 6 7 10 11 14 15: where that of this one lies. So a thread has of such a row the four neighbouring
// columns that it has of one of E4M3. Queries that meet keys in E4M3 lie so too, undivided.
constexpr int half_place(int column) { return column / 16 * 16 + column % 4 / 2 * 8 + column % 16 / 4 * 2 + column % 2; }

// A matrix in device memory: [rows][columns], rows contiguous, columns a multiple of column_multiple (those beyond the model's are zero).
// Behind the last row at least 64 more may be read. Four bits lie as q4.h says.
struct DeviceMatrix {
  enum class Type : uint8_t { bf16, fp8, q4 };  // fp8: E4M3, and a scale for each row; q4: 4 bits, and a scale and a minimum for each 32
  Type type = Type::bf16;
  const void* values = nullptr;
  const float* scales = nullptr;  // [rows], of fp8 alone
  int rows = 0;
  int columns = 0;
  int own_max = 32;  // tokens of a step in which our own kernels multiply it; in larger ones cuBLASLt is faster

  int64_t row_bytes() const { return type == Type::q4 ? q4_row_bytes(columns) : int64_t{columns} * (type == Type::fp8 ? 1 : 2); }
};

// How a norm by the root mean square is shared by the kernels around it, which saves one of its own: who writes the residual stream leaves x times the norm's
// weights, and sums of squares of each 16 values; who reads that multiplies its results by the token's factor, 1 / sqrt(mean square + epsilon).
constexpr int square_values = 16;
struct NormOutput {
  const float* weight = nullptr;      // [rows]; none: nothing is left
  __nv_bfloat16* x = nullptr;         // [tokens][stride]
  int64_t stride = 0;
  float* squares = nullptr;           // [tokens][rows / square_values]
  Activations as = Activations::bfloat16;
};
struct NormInput {
  const float* squares = nullptr;     // [tokens][columns / square_values]; none: x is what it should be
  int count = 0, n = 0;               // columns / square_values; columns, without padding
  float epsilon = 0;
};

// What becomes of a matrix's result y = w . x + bias.
struct MatmulOutput {
  enum class Kind : uint8_t {
    store,  // float32 y
    add,    // float32 y is added to what lies there
    gate,   // `as`: rows are ffn gate rows, then ffn up rows; activation(gate) * up is stored, [tokens][ffn]
  };
  Kind kind = Kind::store;
  void* y = nullptr;            // [tokens][stride]
  int64_t stride = 0;
  const float* bias = nullptr;  // [rows], or none
  Activation activation = Activation::silu;
  Activations as = Activations::bfloat16;
  NormInput norm;               // of x
  NormOutput next;              // of y, of kind `add` with a multiple of 16 rows
};

// matmul_stream.cu: for few tokens. Reads the matrix once, at the memory's pace. x is [tokens][w.columns], stored as half but for matrices of bfloat16, of which up to the
// next multiple of 8 tokens may be read; tokens is 1 to stream_tokens_max. A token's result has the same bits whatever `tokens` is. Gates of four bits have a multiple of
// q4_rows up rows.
constexpr int stream_tokens_max = 64;
void matmul_stream(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output);

// matmul_wide.cu: for some more tokens, 1 to wide_tokens_max. Reads the matrix once, at the memory's pace, as long as there is less to multiply than to read. Matrices
// are of bfloat16 or E4M3; x as above, and nothing behind its last token is read. The same product gives the same bits, but a token's depend on how many there are.
constexpr int wide_tokens_min = 17, wide_tokens_max = 128;  // from the least on faster than matmul_stream
void matmul_wide(cudaStream_t stream, const DeviceMatrix& w, const __nv_bfloat16* x, int tokens, const MatmulOutput& output);

// One layer's keys and values, of all slots. The first byte of a position's key is
//   base + slot * slot_bytes + position / page_tokens * page_bytes + key_offset + head * head_bytes + position % page_tokens * head_dim * bytes_of(element)
// and of its value likewise with value_offset. page_tokens is a multiple of 16, slot_bytes one of page_bytes; only pages up to the row's last position are mapped. Keys and
// values in E4M3 are what is stored times their head's scale, a power of two (kv_scales.cu).
struct KvView {
  uint8_t* base = nullptr;
  int64_t slot_bytes = 0, page_bytes = 0;
  int64_t key_offset = 0, value_offset = 0, head_bytes = 0;
  int page_tokens = 0;
  KvElement element = KvElement::bfloat16;
  const float *key_scales = nullptr, *value_scales = nullptr;  // [kv_heads], of E4M3 alone
};

struct AttendShape {
  int heads = 0, kv_heads = 0, head_dim = 0;
  int window = 0;                // positions seen, the token's own included; 0: all
  float soft_cap = 0;            // scores become soft_cap * tanh(score / soft_cap); 0: they stay
  const float* sinks = nullptr;  // [heads], scores of a position that has no value; or none
};

// Room that attention over chunks needs.
struct AttendScratch {
  float* partials = nullptr;  // [pieces_max, then those of divided tiles][heads][2 + head_dim]
  int* arrived = nullptr;     // [tokens][kv_heads], counters that are zero before and after
};

// attend_pieces.cu and attend_tiles.cu. q is [tokens][q_stride] (heads x head_dim of each), already turned and scaled, and stored as keys want it; out is [tokens][out_stride].
// attend_tiles: the step's tiles, several tokens of a row. attend_pieces: its pieces, chunks of single tokens' contexts, merged in their order. merge_tiles: the
// chunks of tiles that are divided, likewise. They are called in this order, one behind another: pieces do not wait for tiles, which leave multiprocessors to them.
// Keys and values of the step's own tokens are in memory already.
void attend_pieces(cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride,
                   const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride, Activations as = Activations::bfloat16);
void merge_tiles(cudaStream_t stream, const StepView& step, const AttendShape& shape, const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride,
                 Activations as = Activations::bfloat16);
void attend_tiles(cudaStream_t stream, const StepView& step, const AttendShape& shape, const KvView& kv, const __nv_bfloat16* q, int64_t q_stride,
                  const AttendScratch& scratch, __nv_bfloat16* out, int64_t out_stride, Activations as = Activations::bfloat16);
// How many tokens of a row one tile takes, at most, and how many blocks.
int attend_tile_tokens(const AttendShape& shape);
int attend_tile_blocks(const AttendShape& shape);
// attend_wide.cu: whether attend_tiles runs its kernel, a block of which takes a whole multiprocessor; of the other one, two run on each.
bool attends_wide(const AttendShape& shape, KvElement element);

// sample.cu: adjusts logits [samples][vocabulary] into `adjusted` (bias, penalties, barred tokens, mask), then chooses each sample's token.
struct SampleTask {
  const float* logits = nullptr;       // [samples][vocabulary], left as they are
  float* adjusted = nullptr;           // [samples][vocabulary]
  int vocabulary = 0;
  const int32_t* history = nullptr;    // [slots][history_stride], the tokens of each slot's sequence by position
  int64_t history_stride = 0;
  const uint32_t* masks = nullptr;     // [masks][mask_words], bit t % 32 of word t / 32: token t is allowed
  int mask_words = 0;
  int32_t* last_tokens = nullptr;      // [slots], receives each sample's token
  SampleResult* results = nullptr;     // [samples], in memory that the host reads
  void* scratch = nullptr;             // sample_scratch_bytes()
};
size_t sample_scratch_bytes(int samples_max, int vocabulary);
void sample(cudaStream_t stream, const StepView& step, const SampleTask& task);

}  // namespace millrace
