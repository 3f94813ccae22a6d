// Tiny Llamas with random weights, as GGUF files: everything that a large one has, small enough to run thousands of steps in a second.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "format/types.h"
#include "gguf_writer.h"
#include "random.h"

namespace millrace::test {

struct TinyShape {
  int layers = 2;
  int hidden = 64;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 16;
  int ffn = 96;
  int vocabulary = 300;
  int context = 1024;
  Type type = Type::f32;  // of the matrices; norms are always F32
  std::optional<Type> down;  // of ffn_down and attn_v, where it is another: files of mixed types have these in more bits
  bool tied = false;
  bool end_token = false;  // the last token of the vocabulary ends an answer; without it only length or a stop string does
};

// Every type that a GGUF file may hold.
inline constexpr Type all_types[] = {Type::f32,  Type::f16,  Type::bf16, Type::q8_0, Type::q4_0, Type::q4_1,   Type::q5_0,   Type::q5_1,
                                     Type::q2_k, Type::q3_k, Type::q4_k, Type::q5_k, Type::q6_k, Type::iq4_nl, Type::iq4_xs, Type::mxfp4};

// `count` random values of deviation `scale`, stored as `type`; count is a multiple of its block.
std::string random_values(Random& random, Type type, int64_t count, float scale);

// Tokens 0 to 255 are the bytes; those above spell two random letters each.
std::vector<std::string> tiny_vocabulary(const TinyShape& shape, Random& random);

// The header's keys alone, then all of a model, for tests that bend one of them.
void add_keys(GgufWriter& file, const TinyShape& shape, Random& random);
void add_tensors(GgufWriter& file, const TinyShape& shape, Random& random);
std::string tiny_model(const TinyShape& shape, Random& random);

}  // namespace millrace::test
