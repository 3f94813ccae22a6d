// Weights as the CPU's kernels read them: bands of 16 rows, so that 16 outputs lie side by side in the lanes of a vector and no kernel
// ever adds across lanes. Every output's sum over the columns runs in one order, whatever the batch, the threads or the instructions.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../format/model_file.h"

namespace millrace {

constexpr int band_rows = 16;

// 16 rows x 32 columns in 4 bits: value = scale * nibble + minimum; Q4_0 is stored with minimum = -8 * scale. Row r, column 4j + i lies in nibbles[j][4r + i]: columns
// 0 to 15 in its low half, 16 to 31 in its high half (j = 0 to 3).
struct BandQ4 {
  uint16_t scale[band_rows];    // float16
  uint16_t minimum[band_rows];  // float16
  uint8_t nibbles[4][64];
};

// 16 rows x 32 columns in 8 bits: value = scale * quant. Row r, column 4j + i lies in quants[j][4r + i], j = 0 to 7.
struct BandQ8 {
  uint16_t scale[band_rows];  // float16
  int8_t quants[8][64];
};

static_assert(sizeof(BandQ4) == 320 && sizeof(BandQ8) == 544);

enum class Packing { q4, q8, f32, f16, bf16 };  // the last three: [column][16 rows]

struct PackedMatrix {
  Packing packing = Packing::f32;
  int rows = 0;     // as the model has them; the last band is padded with zeros
  int columns = 0;
  int bands = 0;
  int64_t band_bytes = 0;
  std::unique_ptr<uint8_t[], void (*)(uint8_t*)> bytes{nullptr, nullptr};

  const uint8_t* band(int index) const { return bytes.get() + index * band_bytes; }
  bool quantized() const { return packing == Packing::q4 || packing == Packing::q8; }
};

// A packing may round, but by no more than this: of a row's largest magnitude, or of the span of its widest block. Half a step of
// float16 is 2^-12 of a value. What would lose more is packed as float32.
constexpr float pack_error_max = 0x1p-10f;

// What became of the types that were packed, for whoever loads a model.
class PackLog {
 public:
  void note(const FileTensor& tensor, Packing packing, float error);
  // A line for each type that did not stay what it was.
  std::vector<std::string> lines() const;

 private:
  struct Entry {
    int64_t values = 0;
    float error = 0;
    bool as_stored = false;
  };
  std::map<std::pair<std::string, Packing>, Entry> entries_;  // by what it is stored as, for a person
};

// Packs matrices of one width, their rows one after another. `interleaved` takes turns band by band instead (gate, up, gate, up),
// which needs them equally tall. `as_float32` dequantizes first. Types without bands of their own, and types that differ, become the
// smallest packing that holds them all within pack_error_max.
PackedMatrix pack(const std::vector<const FileTensor*>& tensors, bool interleaved, bool as_float32, PackLog* log = nullptr);

// Whether the first packing tried for these is the same: then nothing is lost by packing them together.
bool can_pack_together(const std::vector<const FileTensor*>& tensors);

}  // namespace millrace
