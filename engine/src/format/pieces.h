// Tensors' rows one after another as one matrix, cut into pieces that threads take and read by themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "model_file.h"
#include "status.h"

namespace millrace {

struct Piece {
  const FileTensor* tensor = nullptr;
  int64_t first = 0, count = 0;  // rows of the tensor
  int64_t row = 0;               // of the matrix: what the first of them becomes
};

// Each row once, in order, in pieces of one tensor's rows and of at most bytes_max bytes; a row has row_bytes, no more than bytes_max.
std::vector<Piece> cut_rows(const std::vector<const FileTensor*>& tensors, int64_t row_bytes, int64_t bytes_max);

// A piece's rows as bfloat16 [count][columns], to the nearest; what is behind a tensor's own columns is zero.
Status read_bfloats(const ModelFile& file, const Piece& piece, int columns, uint8_t* to);
// Likewise the bits of rows that the file has as E4M3, [count][columns], and their scales [count].
Status read_e4m3(const ModelFile& file, const Piece& piece, int columns, uint8_t* to, float* scales);

}  // namespace millrace
