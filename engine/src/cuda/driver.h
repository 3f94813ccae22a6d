// The driver's functions for virtual memory, found at run time: nothing is linked that a machine without a driver lacks.
#pragma once

#include <cuda.h>

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

}  // namespace millrace
