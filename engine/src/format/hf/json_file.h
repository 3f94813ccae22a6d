// A file of JSON, bounded.
#pragma once

#include <string>

#include "../json.h"
#include "../mapped_file.h"

namespace millrace {

// The largest tokenizers have some 35 MB.
constexpr size_t json_bytes_max = size_t{256} << 20;

inline Result<Json> read_json_file(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file.ok()) return file.status();
  const auto bytes = file.value().bytes();
  if (bytes.size() > json_bytes_max) return Status::error(path + " is larger than 256 MiB");
  auto json = parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return json.ok() ? json : Result<Json>(Status::error(path + " " + json.message()));
}

}  // namespace millrace
