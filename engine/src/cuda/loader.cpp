#include "loader.h"

#include <algorithm>
#include <atomic>

#include "../base/text.h"
#include "../format/pieces.h"
#include "memory.h"
#include "vectors.h"

namespace millrace {
namespace {

constexpr int64_t buffer_bytes = 1 << 20;
constexpr int buffers_a_lane = 2;
constexpr int lanes_max = 32;  // more threads than these only wait for the link

struct Work {
  const MatrixCopy* copy;
  Piece piece;
};

// One thread's buffers and stream.
class Lane {
 public:
  // Of pinned memory, and of the device's for what becomes E4M3 there (or none): room for all its buffers.
  Lane(uint8_t* pinned, uint8_t* unquantized) {
    for (int i = 0; i < buffers_a_lane; i++) {
      buffers_[i].pinned = pinned + i * buffer_bytes;
      if (unquantized != nullptr) buffers_[i].unquantized = unquantized + i * buffer_bytes;
    }
  }

  // Reads a piece and begins to copy it.
  void load(const ModelFile& file, const Work& work, uint8_t* to) {
    Buffer& buffer = buffers_[next_++ % buffers_a_lane];
    check(cudaEventSynchronize(buffer.copied.get()), "copying weights");
    const auto& [copy, piece] = work;
    const auto values = static_cast<size_t>(piece.count * copy->columns);
    uint8_t* values_to = to + copy->values_at + piece.row * copy->columns * (copy->type == DeviceMatrix::Type::fp8 ? 1 : 2);
    auto* scales_to = reinterpret_cast<float*>(to + copy->scales_at) + piece.row;
    if (copy->keeps_bits) {
      auto* scales = reinterpret_cast<float*>(buffer.pinned + values);
      must(read_e4m3(file, piece, copy->columns, buffer.pinned, scales));
      send(values_to, buffer.pinned, values);
      send(scales_to, scales, static_cast<size_t>(piece.count) * sizeof(float));
    } else {
      must(read_bfloats(file, piece, copy->columns, buffer.pinned));
      const bool is_quantized = copy->type == DeviceMatrix::Type::fp8;
      send(is_quantized ? buffer.unquantized : values_to, buffer.pinned, values * 2);
      if (is_quantized)
        quantize_rows(stream_.get(), reinterpret_cast<const __nv_bfloat16*>(buffer.unquantized), static_cast<int>(piece.count), copy->columns, values_to, scales_to);
    }
    check(cudaEventRecord(buffer.copied.get(), stream_.get()), "copying weights");
  }

  void finish() { check(cudaStreamSynchronize(stream_.get()), "copying weights"); }

 private:
  struct Buffer {
    uint8_t* pinned = nullptr;
    uint8_t* unquantized = nullptr;
    CudaEvent copied = make_event();
  };

  static void must(const Status& status) {
    if (!status.ok()) throw CudaError(status.message());
  }
  void send(void* to, const void* from, size_t bytes) { check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get()), "copying weights"); }

  CudaStream stream_ = make_stream();
  Buffer buffers_[buffers_a_lane];
  int next_ = 0;
};

std::vector<Work> cut(const std::vector<MatrixCopy>& copies) {
  std::vector<Work> all;
  for (const MatrixCopy& copy : copies) {
    const int64_t row_bytes = copy.keeps_bits ? copy.columns + static_cast<int64_t>(sizeof(float)) : int64_t{copy.columns} * 2;
    if (row_bytes > buffer_bytes) throw CudaError(text("a matrix of ", copy.columns, " columns has rows that are too long"));
    for (const Piece& piece : cut_rows(copy.tensors, row_bytes, buffer_bytes)) all.push_back({&copy, piece});
  }
  return all;
}

}  // namespace

void load_matrices(const ModelFile& file, Team& team, const std::vector<MatrixCopy>& copies, uint8_t* to) {
  const std::vector<Work> all = cut(copies);
  const auto count = std::min({static_cast<size_t>(team.size()), size_t{lanes_max}, all.size()});
  constexpr size_t lane_bytes = size_t{buffers_a_lane} * buffer_bytes;
  const bool quantizes = std::ranges::any_of(copies, [](const MatrixCopy& copy) { return copy.type == DeviceMatrix::Type::fp8 && !copy.keeps_bits; });
  const PinnedArray<uint8_t> pinned(count * lane_bytes);
  const DeviceArray<uint8_t> unquantized(quantizes ? count * lane_bytes : 0);
  std::vector<Lane> lanes;  // last, since they end first, and their copies with them
  lanes.reserve(count);
  for (size_t i = 0; i < count; i++) lanes.emplace_back(pinned.get() + i * lane_bytes, quantizes ? unquantized.get() + i * lane_bytes : nullptr);
  int device = 0;
  check(cudaGetDevice(&device), "choosing a device");
  std::atomic<size_t> next{0};
  team.parallel(static_cast<int64_t>(count), 1, [&](int64_t lane, int64_t, int) {
    try {
      check(cudaSetDevice(device), "choosing a device");
      for (size_t i = next++; i < all.size(); i = next++) lanes[static_cast<size_t>(lane)].load(file, all[i], to);
    } catch (...) {
      next = all.size();  // the others need not go on
      throw;
    }
  });
  for (Lane& lane : lanes) lane.finish();
}

}  // namespace millrace
