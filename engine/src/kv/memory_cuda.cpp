// KV memory of a GPU: the driver's physical allocations, mapped behind reserved addresses. Every physical page is also mapped at a place of
// its own, its home, for as long as it lives: so it can be filled before it is behind any address that attention reads. Pages are created
// by a thread of their own from the start on, since creating one takes longer than mapping it.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cassert>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "../base/text.h"
#include "../cuda/cuda.h"
#include "../cuda/driver.h"
#include "memory.h"

namespace millrace {
namespace {

class CudaKvMemory final : public KvMemory {
 public:
  CudaKvMemory(const Driver& driver, int ranges, int pages_a_range, int64_t page_bytes, int pages_max)
      : driver_(driver), pages_a_range_(pages_a_range), page_bytes_(page_bytes), pages_max_(pages_max),
        places_bytes_(static_cast<size_t>(page_bytes) * static_cast<size_t>(pages_a_range) * static_cast<size_t>(ranges)),
        homes_bytes_(static_cast<size_t>(page_bytes) * static_cast<size_t>(pages_max)), behind_(static_cast<size_t>(ranges) * static_cast<size_t>(pages_a_range), none),
        users_(static_cast<size_t>(pages_max), 0) {}

  ~CudaKvMemory() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    if (creator_.joinable()) creator_.join();
    (void)cudaDeviceSynchronize();
    for (size_t place = 0; places_ != 0 && place < behind_.size(); place++)
      if (behind_[place] != none) driver_.unmap(places_ + place * bytes(), bytes());
    for (size_t page = 0; page < handles_.size(); page++) {
      driver_.unmap(home(static_cast<int>(page)), bytes());
      driver_.release(handles_[page]);
    }
    if (places_ != 0) driver_.free_addresses(places_, places_bytes_);
    if (homes_ != 0) driver_.free_addresses(homes_, homes_bytes_);
  }

  Status reserve() {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return Status::error("no CUDA device is in use");
    location_ = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
    for (auto [address, size] : {std::pair(&places_, places_bytes_), std::pair(&homes_, homes_bytes_)})
      if (const CUresult result = driver_.reserve(address, size, 0, 0, 0); result != CUDA_SUCCESS)
        return failure(text("cannot reserve ", size >> 20, " MiB of device addresses for KV memory; choose fewer slots or a shorter context"), result);
    handles_.reserve(static_cast<size_t>(pages_max_));
    creator_ = std::thread([this, device] {
      if (cudaSetDevice(device) == cudaSuccess) create_all();
    });
    return Status();
  }

  uint8_t* base(int range) const override { return reinterpret_cast<uint8_t*>(places_ + index(range, 0) * bytes()); }

  Status map(int range, int page) override {
    assert(behind_[index(range, page)] == none);
    const Result<int> free = take_free();
    return free.ok() ? place(range, page, free.value()) : free.status();
  }

  Status alias(int range, int page, int from_range, int from_page) override {
    assert(behind_[index(range, page)] == none && behind_[index(from_range, from_page)] != none);
    return place(range, page, behind_[index(from_range, from_page)]);
  }

  Status copy(int range, int page, int from_range, int from_page) override {
    assert(behind_[index(range, page)] == none && behind_[index(from_range, from_page)] != none);
    const Result<int> filled = take_copy(behind_[index(from_range, from_page)]);
    return filled.ok() ? place(range, page, filled.value()) : filled.status();
  }

  // A page that nobody else maps may be written as it is: the device's pages are never protected.
  Status own(int range, int page) override {
    if (!is_shared(range, page)) return Status();
    const Result<int> filled = take_copy(behind_[index(range, page)]);
    if (!filled.ok()) return filled.status();
    unmap(range, page);
    return place(range, page, filled.value());
  }

  void unmap(int range, int page) override {
    const int physical = behind_[index(range, page)];
    assert(physical != none);
    driver_.unmap(address(range, page), bytes());
    behind_[index(range, page)] = none;
    places_mapped_--;
    if (--users_[static_cast<size_t>(physical)] > 0) return;
    used_--;
    give_back(physical);
  }

  bool is_shared(int range, int page) const override { return users_[static_cast<size_t>(behind_[index(range, page)])] > 1; }
  int pages_mapped() const override { return used_; }
  int pages_max() const override { return pages_max_; }
  int places_mapped() const override { return places_mapped_; }
  int places_max() const override { return static_cast<int>(behind_.size()); }

 private:
  static constexpr int none = -1;

  size_t bytes() const { return static_cast<size_t>(page_bytes_); }
  size_t index(int range, int page) const { return static_cast<size_t>(range) * static_cast<size_t>(pages_a_range_) + static_cast<size_t>(page); }
  CUdeviceptr address(int range, int page) const { return places_ + index(range, page) * bytes(); }
  CUdeviceptr home(int physical) const { return homes_ + static_cast<size_t>(physical) * bytes(); }

  Status failure(const std::string& what, CUresult result) const {
    const char* name = nullptr;
    driver_.error_name(result, &name);
    return Status::error(text(what, " (", name == nullptr ? "an unknown error" : name, ")"));
  }

  // On the creator's thread, until all pages exist, memory runs out or the end has come.
  void create_all() {
    const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = location_};
    for (int page = 0; page < pages_max_; page++) {
      CUmemGenericAllocationHandle handle = 0;
      Status status;
      if (const CUresult result = driver_.create(&handle, bytes(), &properties, 0); result != CUDA_SUCCESS)
        status = failure("cannot create a KV page", result);
      else
        status = attach(home(page), handle);
      const std::lock_guard lock(mutex_);
      if (status.ok()) {
        handles_.push_back(handle);
        free_.push_back(page);
      } else {
        creation_ = status;
      }
      is_complete_ = !status.ok() || page + 1 == pages_max_;
      created_.notify_all();
      if (is_complete_ || stopping_) return;
    }
  }

  Status attach(CUdeviceptr at, CUmemGenericAllocationHandle handle) {
    const CUmemAccessDesc access = {.location = location_, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    if (const CUresult result = driver_.map(at, bytes(), 0, handle, 0); result != CUDA_SUCCESS) return failure("cannot map a KV page", result);
    if (const CUresult result = driver_.set_access(at, bytes(), &access, 1); result != CUDA_SUCCESS) {
      driver_.unmap(at, bytes());
      return failure("cannot open a KV page", result);
    }
    return Status();
  }

  // A physical page that no place maps; where none is left, one that is about to be created.
  Result<int> take_free() {
    std::unique_lock lock(mutex_);
    created_.wait(lock, [&] { return !free_.empty() || is_complete_; });
    if (free_.empty()) return creation_.ok() ? Status::error("no KV page is free") : creation_;
    const int physical = free_.back();
    free_.pop_back();
    return physical;
  }

  void give_back(int physical) {
    const std::lock_guard lock(mutex_);
    free_.push_back(physical);
  }

  // One with the bytes of another, in the order of the device's work: after the steps that wrote those, before any that reads these.
  Result<int> take_copy(int from) {
    const Result<int> free = take_free();
    if (!free.ok()) return free;
    cudaError_t result = cudaSetDevice(location_.id);
    if (result == cudaSuccess)
      result = cudaMemcpyAsync(reinterpret_cast<void*>(home(free.value())), reinterpret_cast<const void*>(home(from)), bytes(), cudaMemcpyDeviceToDevice, nullptr);
    if (result == cudaSuccess) return free;
    give_back(free.value());
    return Status::error(text("cannot copy a KV page: ", cudaGetErrorString(result)));
  }

  Status place(int range, int page, int physical) {
    CUmemGenericAllocationHandle handle = 0;
    {
      const std::lock_guard lock(mutex_);
      handle = handles_[static_cast<size_t>(physical)];
    }
    int& users = users_[static_cast<size_t>(physical)];
    if (Status status = attach(address(range, page), handle); !status.ok()) {
      if (users == 0) give_back(physical);
      return status;
    }
    if (users++ == 0) used_++;
    behind_[index(range, page)] = physical;
    places_mapped_++;
    return Status();
  }

  const Driver driver_;
  const int pages_a_range_;
  const int64_t page_bytes_;
  const int pages_max_;
  const size_t places_bytes_, homes_bytes_;
  CUmemLocation location_ = {};
  CUdeviceptr places_ = 0, homes_ = 0;
  std::vector<int> behind_;  // [range][page] -> physical page
  std::vector<int> users_;   // [physical page] -> places
  int places_mapped_ = 0, used_ = 0;

  std::mutex mutex_;  // guards what follows
  std::condition_variable created_;
  std::vector<CUmemGenericAllocationHandle> handles_;  // [physical page]
  std::vector<int> free_;                              // physical pages that no place maps; who takes one takes the last
  Status creation_;                                    // why there will be no more, where not because there are all
  bool is_complete_ = false, stopping_ = false;
  std::thread creator_;
};

}  // namespace

Result<std::unique_ptr<KvMemory>> reserve_cuda_kv_memory(int ranges, int pages_a_range, int64_t page_bytes, int pages_max) {
  auto driver = find_driver();
  if (!driver.ok()) return driver.status();
  auto memory = std::make_unique<CudaKvMemory>(driver.take(), ranges, pages_a_range, page_bytes, pages_max);
  if (Status status = memory->reserve(); !status.ok()) return status;
  return std::unique_ptr<KvMemory>(std::move(memory));
}

}  // namespace millrace
