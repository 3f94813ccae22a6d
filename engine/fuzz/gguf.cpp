// A GGUF file from front to back.
#include "format/gguf.h"

#include "bytes_file.h"
#include "use_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const millrace::fuzz::BytesFile file;
  auto model = millrace::read_gguf(file.write(data, size));
  if (model.ok()) millrace::fuzz::use_model(*model.value());
  return 0;
}
