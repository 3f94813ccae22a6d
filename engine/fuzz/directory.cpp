// A Hugging Face directory, its files one after another in the input: config.json, tokenizer.json and model.safetensors, with the byte
// 0x1e (JSON's record separator) between them.
#include "format/hf/directory.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "use_model.h"

namespace {

// A folder that is gone when the process ends.
struct Folder {
  std::string path = std::filesystem::temp_directory_path().string() + "/millrace-fuzz-XXXXXX";
  Folder() {
    if (mkdtemp(path.data()) == nullptr) std::exit(2);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  void write(const char* name, std::string_view bytes) const {
    std::ofstream(path + "/" + name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  for (const char* name : {"config.json", "tokenizer.json"}) {
    const size_t end = std::min(rest.find('\x1e'), rest.size());
    folder.write(name, rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  folder.write("model.safetensors", rest);
  auto model = millrace::read_hf_directory(folder.path);
  if (model.ok()) millrace::fuzz::use_model(*model.value());
  return 0;
}
