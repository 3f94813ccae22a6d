// A safetensors file: its header, and every byte that it claims.
#include "format/hf/safetensors.h"

#include "bytes_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const millrace::fuzz::BytesFile file;
  auto mapped = millrace::MappedFile::open(file.write(data, size));
  millrace::StoredTensors tensors;
  if (!mapped.ok() || !millrace::read_safetensors(mapped.value(), tensors).ok()) return 0;
  static volatile unsigned sum = 0;
  for (const auto& [name, tensor] : tensors)
    for (const uint8_t byte : tensor.bytes) sum = sum + byte;
  return 0;
}
