// A model as data: its numbers, and the list of coarse operators that a step runs through. An architecture is one file that writes
// this list; a backend is what carries it out. Variants of an operator are fields of it.
#pragma once

#include <variant>
#include <vector>

#include "../format/model_file.h"
#include "status.h"

namespace millrace {

struct ModelConfig {
  int layers = 0;
  int hidden = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int vocabulary = 0;
  int context = 0;
  float norm_epsilon = 0;
  float rope_base = 0;
  int rope_dims = 0;                // leading dimensions of a head that turn, in pairs (2i, 2i + 1)
  std::vector<float> rope_factors;  // [rope_dims / 2] divisors of the frequencies, or none
};

// Shapes are [rows][columns], rows contiguous; a projection's rows are its outputs. x is the residual stream, [tokens][hidden].
struct Embed {
  const FileTensor* weight;  // [vocabulary][hidden]
};
// x -> norm -> q, k, v -> RoPE on q and k -> k and v into KV memory.
struct Qkv {
  int layer;
  const FileTensor* norm;  // [hidden]
  const FileTensor* q;     // [heads * head_dim][hidden]
  const FileTensor* k;     // [kv_heads * head_dim][hidden]
  const FileTensor* v;     // [kv_heads * head_dim][hidden]
};
// Each token over its own sequence's positions up to itself: [tokens][heads * head_dim].
struct Attend {
  int layer;
};
struct Project {             // x += weight . attention
  const FileTensor* weight;  // [hidden][heads * head_dim]
};
struct GateUp {              // silu(gate . norm(x)) * (up . norm(x)): [tokens][ffn]
  const FileTensor* norm;    // [hidden]
  const FileTensor* gate;    // [ffn][hidden]
  const FileTensor* up;      // [ffn][hidden]
};
struct Down {                // x += weight . (gated)
  const FileTensor* weight;  // [hidden][ffn]
};
struct Logits {              // of sampled positions only: [samples][vocabulary]
  const FileTensor* norm;    // [hidden]
  const FileTensor* weight;  // [vocabulary][hidden]; the embedding's where the two are tied
};
using Operator = std::variant<Embed, Qkv, Attend, Project, GateUp, Down, Logits>;

struct Model {
  std::string architecture, name;
  ModelConfig config;
  std::vector<Operator> operators;  // in the order of their execution
  uint64_t parameters = 0;
};

// Reads the operators out of a file whose architecture we have; refuses others by name.
Result<Model> read_model(const ModelFile& file);

// One architecture each.
Result<Model> read_llama(const ModelFile& file);

}  // namespace millrace
