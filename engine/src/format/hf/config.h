// config.json, in the spellings of transformers 4 and 5, as GGUF's metadata.
#pragma once

#include "../json.h"
#include "../model_file.h"
#include "names.h"
#include "status.h"

namespace millrace {

// Sets the architecture's keys. Refuses by name what the engine could not know it is missing.
Status set_config(const HfArchitecture& architecture, const Json& config, ModelFile& model);

}  // namespace millrace
