// Tiles that Hopper's copy engine brings into shared memory, and the barriers that tell when they have come. One thread asks for a tile; its
// bytes count down on a barrier of the ring's slot, and every thread that reads them waits for that. Sources: PTX ISA, cp.async.bulk.tensor
// and mbarrier. Addresses are of shared memory, 32 bits.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace millrace {

__device__ inline uint32_t shared_address(const void* memory) { return static_cast<uint32_t>(__cvta_generic_to_shared(memory)); }

__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// What barrier_init wrote is seen by the copy engine and by the block's peers.
__device__ inline void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives at the same barrier of another block of the cluster, which is told that reads are done, and of nothing written.
__device__ inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n\t.reg .b32 there;\n\tmapa.shared::cluster.u32 there, %0, %1;\n\tmbarrier.arrive.shared::cluster.b64 _, [there];\n\t}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Returns when the phase of this parity is over. The phase before it must be known to be.
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n"
      "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t@!done bra again;\n\t}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Whose turn it is in a ring: a slot, and the parity of how often the ring went round.
struct Turn {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance(int stages) {
    if (++slot == stages) slot = 0, parity ^= 1;
  }
};

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster are here: to begin, with barriers_ready() in front of it; to end, when all they did is done.
__device__ inline void cluster_begin() {
  asm volatile("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ inline void cluster_end() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
// To leave, when what they have read is read: it tells nothing of what they wrote, and so waits for no writes.
__device__ inline void cluster_leave() { asm volatile("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait;" ::: "memory"); }

// How long L2 should keep what is read once.
__device__ inline uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

struct TilePlace {
  int column, unit, row;  // the three coordinates of a tile's first value, as its map has them
};

__device__ inline void prefetch_map(const CUtensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Parts of a tile that lie beyond the tensor's end come as zeros, and count as bytes too.
__device__ inline void copy_tile(uint32_t to, const CUtensorMap& map, TilePlace at, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to), "l"(&map),
               "r"(at.column), "r"(at.unit), "r"(at.row), "r"(barrier)
               : "memory");
}
__device__ inline void copy_tile(uint32_t to, const CUtensorMap& map, TilePlace at, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(at.column), "r"(at.unit), "r"(at.row), "r"(barrier), "l"(policy)
      : "memory");
}
// The same of four dimensions, of which the second and the third come whole.
__device__ inline void copy_blocks(uint32_t to, const CUtensorMap& map, int column, int block, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(column), "r"(0), "r"(block), "r"(barrier), "l"(policy)
      : "memory");
}
// To the same place in every block whose bit is set, each of which has its own barrier told.
__device__ inline void copy_tile_to_peers(uint32_t to, const CUtensorMap& map, TilePlace at, uint32_t barrier, uint16_t peers) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(at.column), "r"(at.unit), "r"(at.row), "r"(barrier), "h"(peers)
      : "memory");
}

// Four values to shared memory, and from the same place in another block of the cluster.
__device__ inline void store_shared(uint32_t address, float4 value) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w) : "memory");
}
__device__ inline float4 load_at(uint32_t address, uint32_t rank) {
  float4 value;
  asm volatile(
      "{\n\t.reg .b32 there;\n\tmapa.shared::cluster.u32 there, %4, %5;\n\tld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n\t}"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}

}  // namespace millrace
