// safetensors: eight bytes of header length, a JSON header of names, types, shapes and places, then the data. Every place is checked
// against the file's size before it is believed.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "../mapped_file.h"
#include "status.h"

namespace millrace {

// One tensor as it lies in the file, little-endian, the last dimension contiguous. Its bytes need not be aligned.
struct StoredTensor {
  std::string dtype;  // as the header names it: F32, BF16, F8_E4M3, I32, ...
  std::vector<int64_t> shape;
  std::span<const uint8_t> bytes;

  int64_t values() const;
};

using StoredTensors = std::map<std::string, StoredTensor>;

// Adds a file's tensors, which point into it. A name that is there already is refused.
Status read_safetensors(const MappedFile& file, StoredTensors& tensors);

}  // namespace millrace
