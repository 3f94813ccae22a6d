// What the modules of a Hugging Face checkpoint are called in GGUF, architecture by architecture.
#pragma once

#include <string>
#include <vector>

namespace millrace {

// `{}` stands for a layer's number and, where there is a second one, an expert's.
struct NameRule {
  const char* module;  // e.g. "model.layers.{}.self_attn.q_proj"
  const char* name;    // e.g. "blk.{}.attn_q"; of an expert's matrix the name of all experts' together
};

struct HfArchitecture {
  const char* model_type;      // in config.json
  const char* name;            // in GGUF
  double norm_epsilon;         // where config.json has none
  double rope_base;            // likewise
  bool adds_one_to_norms;      // norms' weights are stored less 1
  std::vector<NameRule> own;   // before those that most share
};

// The architecture of a model_type, or null.
const HfArchitecture* find_hf_architecture(const std::string& model_type);
// All model_types, for a sentence.
std::string hf_model_types();

// A parameter of a checkpoint, taken apart.
struct ParameterName {
  std::string module;     // as in the checkpoint, numbers included
  std::string parameter;  // "weight", "bias", "weight_scale", "qweight", ...
  std::string name;       // of the module in GGUF, its layer's number filled in; empty where no rule knows it
  int expert = -1;
};

ParameterName take_apart(const HfArchitecture& architecture, const std::string& tensor);

}  // namespace millrace
