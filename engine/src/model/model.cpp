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

void choose_frequencies(Model& model, int context_tokens) {
  for (Rope& rope : model.ropes)
    if (!rope.frequencies_long.empty() && context_tokens > rope.original_context) rope.frequencies = rope.frequencies_long;
}

}  // namespace millrace
