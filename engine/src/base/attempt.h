// Where exceptions end: what a thread of ours does is attempted, and what was thrown becomes an error's sentence.
#pragma once

#include <exception>
#include <new>

#include "status.h"

namespace millrace {

template <typename Body>
Status attempt(const Body& body) {
  try {
    body();
    return Status();
  } catch (const std::bad_alloc&) {
    return Status::error("there is not enough memory");
  } catch (const std::exception& error) {
    return Status::error(error.what());
  }
}

}  // namespace millrace
