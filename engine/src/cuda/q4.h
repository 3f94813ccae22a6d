// Weights in four bits: value = scale * quant + minimum, quants from 0 to 15, a float16 scale and minimum for each group of 32 columns. Q4_0
// (whose minimum is -8 scales) and Q4_1 are held as they are. Q4_K's scales and minimums, products of a float16 and 6 bits, are rounded to float16.
//
// A matrix is pieces of 8 rows and 128 columns, [rows / 8][columns / 128], both rounded up, each of 640 bytes that lie as the lanes of a warp want them:
// lane 4 * row + group has quants[lane], 16 bytes, and then scales[lane], two halves. A word of the 16 bytes is 8 columns, those of number w of
// group g from 8 * (w ^ 2 * (g % 2)) on; its lower half has the even columns, four bits each from the lowest on, its upper half the odd ones.
// What lies beyond a row's columns has scale and minimum 0. 5 bits a weight.
#pragma once

#include <cstdint>

namespace millrace {

constexpr int q4_group_columns = 32, q4_piece_groups = 4, q4_rows = 8, q4_piece_columns = q4_piece_groups * q4_group_columns;
constexpr int q4_quants_bytes = q4_rows * q4_piece_groups * 16, q4_piece_bytes = q4_quants_bytes + q4_rows * q4_piece_groups * 4;

constexpr int q4_pieces(int columns) { return (columns + q4_piece_columns - 1) / q4_piece_columns; }
// On average: rows of a piece lie in each other.
constexpr int64_t q4_row_bytes(int columns) { return int64_t{q4_pieces(columns)} * (q4_piece_bytes / q4_rows); }
// The first of a word's 8 columns in its group.
constexpr int q4_word_column(int group, int word) { return 8 * (word ^ 2 * (group % 2)); }
// Where the lane of a row and a group begins to read: bytes from a matrix's first.
constexpr int64_t q4_piece_at(int64_t row, int group, int pieces) { return (row / q4_rows * pieces + group / q4_piece_groups) * q4_piece_bytes; }
constexpr int q4_lane(int64_t row, int group) { return static_cast<int>(row % q4_rows) * q4_piece_groups + group % q4_piece_groups; }

}  // namespace millrace
