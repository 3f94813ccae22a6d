// A GPU's KV pages: the driver's physical allocations, mapped behind reserved addresses. Every physical page is also mapped at a place of its
// own, its home, for as long as it lives: so it can be filled before it is behind any address that attention reads. Pages are created by a
// thread of their own from the start on, since creating one takes longer than mapping it.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "../base/text.h"
#include "../cuda/cuda.h"
#include "../cuda/driver.h"
#include "pages.h"

namespace millrace {
namespace {

class CudaPages final : public KvPages {
 public:
  CudaPages(const Driver& driver, int64_t places, int64_t page_bytes, int pages_max)
      : driver_(driver), page_bytes_(static_cast<size_t>(page_bytes)), pages_max_(pages_max), places_bytes_(page_bytes_ * static_cast<size_t>(places)),
        homes_bytes_(page_bytes_ * static_cast<size_t>(pages_max)), behind_(static_cast<size_t>(places), none) {}

  ~CudaPages() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    if (creator_.joinable()) creator_.join();
    (void)cudaDeviceSynchronize();
    if (places_ != 0) detach(0, static_cast<int>(behind_.size()));
    for (size_t page = 0; page < handles_.size(); page++) {
      driver_.unmap(home(static_cast<int>(page)), page_bytes_);
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
    creator_ = std::thread([this] { create_all(); });
    return Status();
  }

  uint8_t* address(int64_t place) const override { return reinterpret_cast<uint8_t*>(at(place)); }
  int64_t places_max() const override { return static_cast<int64_t>(behind_.size()); }

  // Waits until the thread has.
  Status create(int page) override {
    std::unique_lock lock(mutex_);
    created_.wait(lock, [&] { return static_cast<size_t>(page) < handles_.size() || !creation_.ok(); });
    return static_cast<size_t>(page) < handles_.size() ? Status() : creation_;
  }

  // The device's pages are never protected.
  Status attach(int64_t place, int page, bool) override {
    (void)cudaSetDevice(location_.id);  // whichever thread this is
    detach(place, 1);
    CUmemGenericAllocationHandle handle = 0;
    {
      const std::lock_guard lock(mutex_);
      handle = handles_[static_cast<size_t>(page)];
    }
    Status status = open(at(place), handle);
    if (status.ok()) behind_[static_cast<size_t>(place)] = page;
    return status;
  }
  Status protect(int64_t, bool) override { return Status(); }

  // Pages that follow one another go in one call, which takes hardly longer than that of one page.
  void detach(int64_t place, int count) override {
    const auto begin = behind_.begin() + place, end = begin + count;
    for (auto first = std::find_if(begin, end, is_mapped); first != end; first = std::find_if(first, end, is_mapped)) {
      const auto behind = std::find(first, end, none);
      const int64_t from = first - behind_.begin(), pages = behind - first;
      if (driver_.unmap(at(from), static_cast<size_t>(pages) * page_bytes_) != CUDA_SUCCESS)
        for (int64_t page = from; page < from + pages; page++) driver_.unmap(at(page), page_bytes_);
      std::fill(first, behind, none);
    }
  }

  // In the order of the device's work: after the steps that wrote the one, before any that reads the other. From home to home, since places may
  // have other pages by the time that the device gets to it.
  Status copy(int page, int64_t from) override {
    const std::lock_guard lock(default_stream_mutex());
    cudaError_t result = cudaSetDevice(location_.id);
    const int source = behind_[static_cast<size_t>(from)];
    if (result == cudaSuccess)
      result = cudaMemcpyAsync(reinterpret_cast<void*>(home(page)), reinterpret_cast<const void*>(home(source)), page_bytes_, cudaMemcpyDeviceToDevice, nullptr);
    return result == cudaSuccess ? Status() : Status::error(text("cannot copy a KV page: ", cudaGetErrorString(result)));
  }

 private:
  static constexpr int none = -1;

  static bool is_mapped(int page) { return page != none; }
  CUdeviceptr at(int64_t place) const { return places_ + static_cast<size_t>(place) * page_bytes_; }
  CUdeviceptr home(int page) const { return homes_ + static_cast<size_t>(page) * page_bytes_; }

  Status failure(const std::string& what, CUresult result) const {
    const char* name = nullptr;
    driver_.error_name(result, &name);
    return Status::error(text(what, " (", name == nullptr ? "an unknown error" : name, ")"));
  }

  // On the creator's thread, until all pages exist, memory runs out or the end has come.
  void create_all() {
    const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = location_};
    (void)cudaSetDevice(location_.id);
    for (int page = 0; page < pages_max_; page++) {
      CUmemGenericAllocationHandle handle = 0;
      Status status;
      if (const CUresult result = driver_.create(&handle, page_bytes_, &properties, 0); result != CUDA_SUCCESS)
        status = failure("cannot create a KV page", result);
      else if (status = open(home(page), handle); !status.ok())
        driver_.release(handle);
      const std::lock_guard lock(mutex_);
      if (status.ok())
        handles_.push_back(handle);
      else
        creation_ = status;
      created_.notify_all();
      if (!status.ok() || stopping_) return;
    }
  }

  // Maps a page where nothing is, for the device to read and write.
  Status open(CUdeviceptr at, CUmemGenericAllocationHandle handle) {
    const CUmemAccessDesc access = {.location = location_, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    if (const CUresult result = driver_.map(at, page_bytes_, 0, handle, 0); result != CUDA_SUCCESS) return failure("cannot map a KV page", result);
    if (const CUresult result = driver_.set_access(at, page_bytes_, &access, 1); result != CUDA_SUCCESS) {
      driver_.unmap(at, page_bytes_);
      return failure("cannot open a KV page", result);
    }
    return Status();
  }

  const Driver driver_;
  const size_t page_bytes_;
  const int pages_max_;
  const size_t places_bytes_, homes_bytes_;
  CUmemLocation location_ = {};
  CUdeviceptr places_ = 0, homes_ = 0;
  std::vector<int> behind_;  // [place] -> physical page

  std::mutex mutex_;  // guards what follows
  std::condition_variable created_;
  std::vector<CUmemGenericAllocationHandle> handles_;  // [physical page]
  Status creation_;                                    // why there will be no more before there are all
  bool stopping_ = false;
  std::thread creator_;
};

}  // namespace

Result<std::unique_ptr<KvPages>> reserve_cuda_pages(int64_t places, int64_t page_bytes, int pages_max) {
  auto driver = find_driver();
  if (!driver.ok()) return driver.status();
  auto pages = std::make_unique<CudaPages>(driver.take(), places, page_bytes, pages_max);
  if (Status status = pages->reserve(); !status.ok()) return status;
  return std::unique_ptr<KvPages>(std::move(pages));
}

}  // namespace millrace
