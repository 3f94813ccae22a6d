#include "model.h"

#include "../base/text.h"

namespace millrace {

Result<Model> read_model(const ModelFile& file) {
  const std::string architecture = file.string("general.architecture").value_or("");
  if (architecture == "llama") return read_llama(file);
  return Status::error(text(file.path(), " is a model of the architecture \"", architecture, "\", which this engine does not have; it has: llama"));
}

}  // namespace millrace
