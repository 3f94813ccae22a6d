#include "model.h"

#include "../base/text.h"
#include "architecture.h"

namespace millrace {

Result<Model> read_model(const ModelFile& file) {
  const std::string name = file.string("general.architecture").value_or("");
  std::string known;
  for (const Architecture* architecture : architectures())
    for (const std::string_view each : architecture->names) {
      known += (known.empty() ? "" : ", ") + std::string(each);
      if (each != name) continue;
      ModelReader read(file, name);
      Model model = read.begin();
      if (read.ok()) architecture->read(read, model);
      if (Status status = read.finish(); !status.ok()) return status;
      return model;
    }
  return Status::error(text(file.path(), " is a model of the architecture \"", name, "\", which this engine does not have; it has: ", known));
}

std::vector<float> biases_of(const std::vector<Linear>& parts) {
  std::vector<float> biases;
  bool biased = false;
  for (const Linear& part : parts) {
    std::vector<float> bias = read_vector(part.bias);
    biased |= !bias.empty();
    bias.resize(static_cast<size_t>(part.weight->rows()));
    biases.insert(biases.end(), bias.begin(), bias.end());
  }
  if (!biased) biases.clear();
  return biases;
}

std::vector<int> windows_of(const Model& model, int context_tokens) {
  std::vector<int> windows(static_cast<size_t>(model.config.layers));
  for (const Operator& op : model.operators)
    if (const auto* attend = std::get_if<Attend>(&op)) windows[static_cast<size_t>(attend->layer)] = attend->window < context_tokens ? attend->window : 0;
  return windows;
}

void choose_frequencies(Model& model, int context_tokens) {
  for (Rope& rope : model.ropes)
    if (!rope.frequencies_long.empty() && context_tokens > rope.original_context) rope.frequencies = rope.frequencies_long;
}

}  // namespace millrace
