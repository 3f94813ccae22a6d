// Memory that frees itself, the device's and the host's that the device reads and writes; and streams and events that end by themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <type_traits>

#include "error.h"

namespace millrace {

struct DeviceFree {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct PinnedFree {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};

struct StreamEnd {
  // What it has begun is done.
  void operator()(cudaStream_t stream) const {
    (void)cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
};
struct EventEnd {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using CudaStream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamEnd>;
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventEnd>;

// One that waits for no other, and none for it.
inline CudaStream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  return CudaStream(stream);
}
inline CudaEvent make_event(bool is_timed = false) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, is_timed ? cudaEventDefault : cudaEventDisableTiming), "creating an event");
  return CudaEvent(event);
}

// `count` values on the device, zero at first.
template <typename Value>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t count) : count_(count) {
    if (count == 0) return;
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes()), "allocating device memory");
    memory_.reset(static_cast<Value*>(memory));
    check(cudaMemset(memory, 0, bytes()), "clearing device memory");
    // Streams of other kinds do not wait for it by themselves.
    check(cudaStreamSynchronize(nullptr), "clearing device memory");
  }
  Value* get() const { return memory_.get(); }
  size_t count() const { return count_; }
  size_t bytes() const { return count_ * sizeof(Value); }

 private:
  std::unique_ptr<Value, DeviceFree> memory_;
  size_t count_ = 0;
};

// `count` values in the host's memory, in a place that the device sees at the same address.
template <typename Value>
class PinnedArray {
 public:
  PinnedArray() = default;
  explicit PinnedArray(size_t count) : count_(count) {
    if (count == 0) return;
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, count * sizeof(Value), cudaHostAllocMapped | cudaHostAllocPortable), "allocating pinned memory");
    memory_.reset(static_cast<Value*>(memory));
  }
  Value* get() const { return memory_.get(); }
  Value& operator[](size_t index) const { return memory_.get()[index]; }
  size_t count() const { return count_; }

 private:
  std::unique_ptr<Value, PinnedFree> memory_;
  size_t count_ = 0;
};

}  // namespace millrace
