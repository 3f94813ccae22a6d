// A JSON text.
#include "format/json.h"

#include <cstdint>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)millrace::parse_json({reinterpret_cast<const char*>(data), size});
  return 0;
}
