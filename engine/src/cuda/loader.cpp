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
  // Of pinned memory, and of the device's for what is made something else there (or none): room for all its buffers.
  Lane(uint8_t* pinned, uint8_t* raw) {
    for (int i = 0; i < buffers_a_lane; i++) {
      buffers_[i].pinned = pinned + i * buffer_bytes;
      if (raw != nullptr) buffers_[i].raw = raw + i * buffer_bytes;
    }
  }

  // Reads a piece and begins to copy it.
  void load(const ModelFile& file, const Work& work, uint8_t* to) {
    Buffer& buffer = buffers_[next_++ % buffers_a_lane];
    check(cudaEventSynchronize(buffer.copied.get()), "copying weights");
    switch (work.copy->type) {
      case DeviceMatrix::Type::bf16:
        load_bfloats(file, work, buffer, to + work.copy->values_at + work.piece.row * work.copy->columns * 2);
        break;
      case DeviceMatrix::Type::fp8:
        load_e4m3(file, work, buffer, to);
        break;
      case DeviceMatrix::Type::q4:
        load_q4(file, work, buffer, to);
        break;
    }
    check(cudaEventRecord(buffer.copied.get(), stream_.get()), "copying weights");
  }

  void finish() { check(cudaStreamSynchronize(stream_.get()), "copying weights"); }

 private:
  struct Buffer {
    uint8_t* pinned = nullptr;
    uint8_t* raw = nullptr;
    CudaEvent copied = make_event();
  };

  void load_bfloats(const ModelFile& file, const Work& work, const Buffer& buffer, void* to) {
    const auto& [copy, piece] = work;
    must(read_bfloats(file, piece, copy->columns, buffer.pinned));
    send(to, buffer.pinned, static_cast<size_t>(piece.count * copy->columns) * 2);
  }
  void load_e4m3(const ModelFile& file, const Work& work, const Buffer& buffer, uint8_t* to) {
    const auto& [copy, piece] = work;
    const auto values = static_cast<size_t>(piece.count * copy->columns);
    uint8_t* values_to = to + copy->values_at + piece.row * copy->columns;
    auto* scales_to = reinterpret_cast<float*>(to + copy->scales_at) + piece.row;
    if (!copy->keeps_bits) {
      load_bfloats(file, work, buffer, buffer.raw);
      return quantize_rows(stream_.get(), reinterpret_cast<const __nv_bfloat16*>(buffer.raw), static_cast<int>(piece.count), copy->columns, values_to, scales_to);
    }
    auto* scales = reinterpret_cast<float*>(buffer.pinned + values);
    must(read_e4m3(file, piece, copy->columns, buffer.pinned, scales));
    send(values_to, buffer.pinned, values);
    send(scales_to, scales, static_cast<size_t>(piece.count) * sizeof(float));
  }
  void load_q4(const ModelFile& file, const Work& work, const Buffer& buffer, uint8_t* to) {
    const auto& [copy, piece] = work;
    const auto bytes = static_cast<size_t>(piece.count * piece.tensor->row_bytes());
    must(file.read(piece.tensor->row(piece.first), bytes, buffer.pinned));
    send(buffer.raw, buffer.pinned, bytes);
    const DeviceMatrix matrix{.type = copy->type, .values = to + copy->values_at, .columns = copy->columns};
    pack_q4(stream_.get(), piece.tensor->type, buffer.raw, piece.count, piece.tensor->columns(), matrix, piece.row);
  }

  static void must(const Status& status) {
    if (!status.ok()) throw CudaError(status.message());
  }
  void send(void* to, const void* from, size_t bytes) { check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_.get()), "copying weights"); }

  CudaStream stream_ = make_stream();
  Buffer buffers_[buffers_a_lane];
  int next_ = 0;
};

// What a row takes of a buffer, at most.
int64_t read_row_bytes(const MatrixCopy& copy) {
  if (copy.keeps_bits) return copy.columns + static_cast<int64_t>(sizeof(float));
  if (copy.type != DeviceMatrix::Type::q4) return int64_t{copy.columns} * 2;
  return (*std::ranges::max_element(copy.tensors, {}, &FileTensor::row_bytes))->row_bytes();
}

std::vector<Work> cut(const std::vector<MatrixCopy>& copies) {
  std::vector<Work> all;
  for (const MatrixCopy& copy : copies) {
    const int64_t row_bytes = read_row_bytes(copy);
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
  const bool is_made = std::ranges::any_of(copies, [](const MatrixCopy& copy) { return copy.type != DeviceMatrix::Type::bf16 && !copy.keeps_bits; });
  const PinnedArray<uint8_t> pinned(count * lane_bytes);
  const DeviceArray<uint8_t> raw(is_made ? count * lane_bytes : 0);
  std::vector<Lane> lanes;  // last, since they end first, and their copies with them
  lanes.reserve(count);
  for (size_t i = 0; i < count; i++) lanes.emplace_back(pinned.get() + i * lane_bytes, is_made ? raw.get() + i * lane_bytes : nullptr);
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
