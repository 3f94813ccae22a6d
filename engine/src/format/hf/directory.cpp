#include "directory.h"

#include <filesystem>
#include <set>

#include "../../base/text.h"
#include "config.h"
#include "json_file.h"
#include "tokenizer.h"
#include "weights.h"

namespace millrace {
namespace {

constexpr size_t shards_max = 1000;

// The names of the files with the weights: of model.safetensors.index.json, or the one.
Result<std::set<std::string>> find_shards(const std::string& path) {
  const auto missing = [&](const std::string& name) { return !std::filesystem::exists(path + "/" + name); };
  if (missing("model.safetensors.index.json")) {
    if (!missing("model.safetensors")) return std::set<std::string>{"model.safetensors"};
    const bool pickled = !missing("pytorch_model.bin") || !missing("pytorch_model.bin.index.json");
    return Status::error(path + " has no model.safetensors" + (pickled ? "; its pytorch_model.bin is not read: convert it to safetensors" : ""));
  }
  auto index = read_json_file(path + "/model.safetensors.index.json");
  if (!index.ok()) return index.status();
  const Json::Object* map = index.value()["weight_map"].object();
  if (map == nullptr || map->empty()) return Status::error(path + "/model.safetensors.index.json has no weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, file] : *map) {
    const std::string* name = file.string();
    if (name == nullptr || name->empty() || name->find('/') != std::string::npos || name->find('\\') != std::string::npos)
      return Status::error(path + "/model.safetensors.index.json names a file outside of its folder for " + tensor);
    names.insert(*name);
  }
  if (names.size() > shards_max) return Status::error(text(path, "/model.safetensors.index.json names ", names.size(), " files"));
  std::string absent;
  for (const std::string& name : names)
    if (missing(name)) absent += (absent.empty() ? "" : ", ") + name;
  if (!absent.empty()) return Status::error(text(path, " lacks ", absent, " of the ", names.size(), " files that its index names; fetch them too"));
  return names;
}

Status read_weights(const HfArchitecture& architecture, const Json& config, ModelFile& model) {
  auto quantization = read_quantization(config["quantization_config"].is_null() ? config["compression_config"] : config["quantization_config"]);
  if (!quantization.ok()) return Status::error(model.path() + " " + quantization.message());
  auto shards = find_shards(model.path());
  if (!shards.ok()) return shards.status();
  StoredTensors tensors;
  for (const std::string& name : shards.value()) {
    auto file = MappedFile::open(model.path() + "/" + name);
    if (!file.ok()) return file.status();
    if (Status status = read_safetensors(model.hold(file.take()), tensors); !status.ok()) return status;
  }
  const Status status = add_weights(architecture, quantization.value(), config, tensors, model);
  return status.ok() ? status : Status::error(model.path() + ": " + status.message());
}

}  // namespace

Result<std::unique_ptr<ModelFile>> read_hf_directory(const std::string& path) {
  if (!std::filesystem::exists(path + "/config.json")) return Status::error(path + " is a folder without a config.json; give a GGUF file, or a folder as Hugging Face has them");
  auto read = read_json_file(path + "/config.json");
  if (!read.ok()) return read.status();
  const Json config = read.take();
  const std::string model_type = config["model_type"].string() ? *config["model_type"].string() : "";
  const HfArchitecture* architecture = find_hf_architecture(model_type);
  if (architecture == nullptr)
    return Status::error(text(path, " is a model of the type \"", model_type, "\", which is not read; these are: ", hf_model_types()));
  auto model = std::make_unique<ModelFile>(path);
  model->set("general.architecture", std::string(architecture->name));
  model->set("general.name", std::filesystem::path(path).lexically_normal().filename().string());
  model->set(rope_style_key, std::string("halves"));
  if (Status status = set_config(*architecture, config, *model); !status.ok()) return Status::error(path + " " + status.message());
  if (Status status = set_tokenizer(path, config, *model); !status.ok()) return status;
  if (Status status = read_weights(*architecture, config, *model); !status.ok()) return status;
  return model;
}

}  // namespace millrace
