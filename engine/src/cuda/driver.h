// The driver's functions for virtual memory, found at run time: nothing is linked that a machine without a driver lacks.
#pragma once

#include <cuda.h>

#include <mutex>

#include "status.h"

namespace millrace {

struct Driver {
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free_addresses = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuGetErrorName) error_name = nullptr;
};

Result<Driver> find_driver();

// While a graph is captured nobody may use the default stream, whichever engine of the process he belongs to: held by both.
std::mutex& default_stream_mutex();

}  // namespace millrace
