// What both kernels for tiles share: what one block takes of a tile.
#pragma once

#include "attend.cuh"

namespace millrace {

// attend_wide.cu: the kernel that attend_tiles takes where attends_wide says so, but for the merging of chunks.
void attend_wide(cudaStream_t stream, const AttendTask& task);

#ifdef __CUDACC__

// Rows [first_row, rows) of the packed queries of one KV head. Row r is head r % group of the tile's token r / group.
struct TileItem {
  int token, slot, kv_head, first_row, rows;
  int position;      // of the tile's first token
  int from, upto;    // positions that some row sees, of the tile's chunk; from >= upto: none
  int chunk;
  const uint8_t* keys;
};
// Later tiles have smaller indices: they read most. Beyond them all, one that sees nothing.
template <int block_rows>
__device__ TileItem tile_item(const AttendTask& task, int index) {
  const int head_block = index % (task.blocks * task.shape.kv_heads), number = task.step.counts->tiles - 1 - index / (task.blocks * task.shape.kv_heads);
  if (number < 0) return {};
  const AttendTile tile = task.step.tiles[number];
  const StepToken token = task.step.tokens[tile.token];
  const int kv_head = head_block % task.shape.kv_heads, first_row = (task.blocks - 1 - head_block / task.shape.kv_heads) * block_rows;
  const int rows = min(first_row + block_rows, tile.count * task.group);
  int from = first_seen(token.position + first_row / task.group, task.shape.window), upto = token.position + (rows - 1) / task.group + 1;
  if (const int chunk_tokens = task.step.tile_chunk_tokens; chunk_tokens > 0) from = max(from, tile.chunk * chunk_tokens), upto = min(upto, (tile.chunk + 1) * chunk_tokens);
  return {tile.token, token.slot, kv_head, first_row, rows, token.position, from, upto, tile.chunk, keys_of(task.kv, token.slot, kv_head)};
}

#endif

}  // namespace millrace
