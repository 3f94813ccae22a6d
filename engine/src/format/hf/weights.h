// A checkpoint's tensors under GGUF's names and in GGUF's shapes.
#pragma once

#include "../json.h"
#include "../model_file.h"
#include "names.h"
#include "quantized.h"
#include "safetensors.h"
#include "status.h"

namespace millrace {

// Adds every tensor of the checkpoint to the model. One that the architecture has no name for is refused: it would be a model other
// than the one that is run.
Status add_weights(const HfArchitecture& architecture, const HfQuantization& quantization, const Json& config, const StoredTensors& stored, ModelFile& model);

}  // namespace millrace
