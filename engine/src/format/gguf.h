// GGUF v3. Everything the header says is checked against the file's size before it is believed, so a file that lies costs an error
// and never a read past its end.
#pragma once

#include <memory>
#include <string>

#include "model_file.h"
#include "status.h"

namespace millrace {

Result<std::unique_ptr<ModelFile>> read_gguf(const std::string& path);

}  // namespace millrace
