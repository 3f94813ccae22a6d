// All layers of a step of few tokens in one kernel (layers.cu), whose multiprocessors go from matrix to matrix by counters instead of kernels' ends: so the
// weights that follow are on their way while attention, norms and the slowest multiprocessor are waited for.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attend.cuh"
#include "kernels.h"
#include "memory.h"
#include "stream_plan.h"
#include "stream_warp.cuh"
#include "vectors.h"

namespace millrace {

constexpr int layers_tokens_max = 16, layers_group_max = 8;
constexpr int layer_matrices = 4;
// Behind each of which all wait for all: attention, and the last three matrices. What the first one yields has tags instead.
constexpr int layer_phases = 4;

// What a layer does: y = w . x of qkv, project, gate-up and down, and attention behind the first of these.
struct LayerProduct {
  DeviceMatrix w;
  const __nv_bfloat16* x = nullptr;
  MatmulOutput output;
};
struct alignas(16) LayerAttention {
  HeadsTask heads;
  AttendTask attend;  // of any step: the kernel has the step from its launch
};
struct Layer {
  LayerProduct products[layer_matrices];
  LayerAttention attention;
};
// Whether the kernel runs such layers: all of one shape and type, of head_dim 64 or 128.
bool can_run_layers(const std::vector<Layer>& layers);

// How a multiprocessor finds its part; see stream_plan.h for blocks, tiles and stages. Stages lie in the ring one behind the other, as long as each is.
struct LayersPlan {
  struct Matrix {
    int cta_blocks, longer_ctas;  // the blocks of each CTA, and how many have one more
    int shift;                    // the first of those
    int steps, boxes, block_rows, half_rows, columns;
    NormInput norm;
  };
  Matrix matrices[layer_matrices];
  int layers = 0, grid = 0, tokens = 0, token_tiles = 0, kv_heads = 0;
  uint32_t ring_at = 0, ring_bytes = 0;
  size_t shared_bytes = 0;
};
struct LayersMaps {
  StreamMaps w;
  CUtensorMap x;
};
// What the kernel is told at its launch. Arrays are of all layers, one after another.
struct LayersTask {
  LayersPlan plan;
  StepView step;
  const LayersMaps* maps = nullptr;
  const StreamResult* results = nullptr;
  const LayerAttention* attentions = nullptr;
  uint32_t* counters = nullptr;       // [layers][layer_phases], each the CTAs that were done with it, of all launches
  const uint64_t* tagged = nullptr;   // [tokens][rows of qkv]; see StreamResult
};

void run_layers(cudaStream_t stream, const LayersTask& task, DeviceMatrix::Type type, KvElement element, int head_dim);
// Bytes of shared memory: what a multiprocessor has, and what lies in front of the ring.
constexpr size_t layers_shared_max = 227 << 10;
size_t layers_exchange_end(int token_tiles, int group, int head_dim);

// Of a process's engines one at a time runs this kernel on a device: two of them at once would each wait for multiprocessors that the other has. Engines of
// other processes take turns with it, but for those that a server like MPS lets in at the same time.
class LayersClaim {
 public:
  explicit LayersClaim(int device);
  LayersClaim(const LayersClaim&) = delete;
  LayersClaim& operator=(const LayersClaim&) = delete;
  ~LayersClaim();
  bool is_granted() const { return is_granted_; }

 private:
  const int device_;
  const bool is_granted_;
};

// The layers of steps of one size.
class Layers {
 public:
  Layers(const std::vector<Layer>& layers, int tokens);
  void run(cudaStream_t stream, const StepView& step) const;

 private:
  DeviceMatrix::Type type_;
  KvElement element_;
  int head_dim_;
  LayersTask task_;
  DeviceArray<LayersMaps> maps_;
  DeviceArray<StreamResult> results_;
  DeviceArray<LayerAttention> attentions_;
  DeviceArray<uint32_t> counters_;
  DeviceArray<uint64_t> tagged_;
};

}  // namespace millrace
