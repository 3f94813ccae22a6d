#include "tokenizer.h"

#include <filesystem>
#include <unordered_map>

#include "../../base/text.h"
#include "../vocabulary.h"
#include "json_file.h"

namespace millrace {
namespace {

constexpr int64_t vocabulary_max = 1 << 24;

// Whether a tree of normalizers, pre-tokenizers or decoders has one of this type.
bool has_type(const Json& json, const std::string& type, int depth = 0) {
  if (depth > json_depth_max) return false;
  if (const std::string* own = json["type"].string(); own && *own == type) return true;
  if (const Json::Object* members = json.object())
    for (const auto& [key, value] : *members)
      if (has_type(value, type, depth + 1)) return true;
  if (const Json::Array* items = json.array())
    for (const Json& item : *items)
      if (has_type(item, type, depth + 1)) return true;
  return false;
}

// A special token as configurations write it: its text, or an object with its text.
std::string text_of_token(const Json& token) {
  const std::string* text = token.string() ? token.string() : token["content"].string();
  return text ? *text : "";
}

std::vector<int64_t> ids_of(const Json& ids) {
  std::vector<int64_t> all;
  if (ids.integer()) all.push_back(*ids.integer());
  if (const Json::Array* items = ids.array())
    for (const Json& item : *items)
      if (item.integer()) all.push_back(*item.integer());
  return all;
}

class TokenizerReader {
 public:
  TokenizerReader(const std::string& path, const Json& config, ModelFile& model) : path_(path), config_(config), model_(model) {}

  Status read() {
    count_ = config_["vocab_size"].integer().value_or(0);
    if (count_ < 1 || count_ > vocabulary_max) return Status::error(text(path_, " gives vocab_size as ", count_, ", not 1 to ", vocabulary_max));
    tokens_.resize(static_cast<size_t>(count_));
    types_.assign(static_cast<size_t>(count_), static_cast<double>(TokenType::unused));
    for (int64_t id = 0; id < count_; id++) tokens_[static_cast<size_t>(id)] = text("[unused", id, "]");
    Status status = std::filesystem::exists(path_ + "/tokenizer.json") ? read_tokenizer() : read_nothing();
    if (status.ok()) status = read_settings();
    if (!status.ok()) return status;
    model_.set("tokenizer.ggml.tokens", std::move(tokens_));
    model_.set("tokenizer.ggml.token_type", std::move(types_));
    return Status();
  }

 private:
  Status read_nothing() {
    if (std::filesystem::exists(path_ + "/tokenizer.model"))
      return Status::error(path_ + " has a tokenizer.model but no tokenizer.json; save it again with transformers' fast tokenizer");
    model_.set("tokenizer.ggml.model", std::string("none"));
    return Status();
  }

  Status read_tokenizer() {
    const std::string file = path_ + "/tokenizer.json";
    auto mapped = MappedFile::open(file);
    if (!mapped.ok()) return mapped.status();
    auto read = read_json_file(file);
    if (!read.ok()) return read.status();
    const Json json = read.take();
    const Json& bpe = json["model"];
    const std::string type = bpe["type"].string() ? *bpe["type"].string() : bpe["merges"].array() ? "BPE" : "";
    if (type != "BPE" || bpe["vocab"].object() == nullptr) return Status::error(file + " is of the type \"" + type + "\", which is not read; BPE is");
    const bool bytes = has_type(json["decoder"], "ByteLevel") || has_type(json["pre_tokenizer"], "ByteLevel");
    if (!bytes && !bpe["byte_fallback"].boolean().value_or(false))
      return Status::error(file + " is a BPE that is neither byte-level nor falls back to bytes, which is not read");
    model_.set("tokenizer.ggml.model", std::string(bytes ? "gpt2" : "llama"));
    const std::string unknown = text_of_token(bpe["unk_token"]);
    for (const auto& [token, id] : *bpe["vocab"].object()) {
      const bool is_byte = !bytes && is_byte_token(token);
      put(id, token, token == unknown && !unknown.empty() ? TokenType::unknown : is_byte ? TokenType::byte : TokenType::normal);
    }
    if (const Json::Array* added = json["added_tokens"].array())
      for (const Json& token : *added)
        if (const std::string* content = token["content"].string())
          put(token["id"], *content, token["special"].boolean().value_or(false) ? TokenType::control : TokenType::user_defined);
    if (const auto found = ids_.find(unknown); found != ids_.end()) model_.set("tokenizer.ggml.unknown_token_id", found->second);
    model_.set("tokenizer.ggml.add_space_prefix", false);  // tokenizer.json says it in its own way
    begins_with_ = token_in_front(json["post_processor"]);
    const auto held = mapped.value().bytes();
    model_.set(tokenizer_json_key, std::string(reinterpret_cast<const char*>(held.data()), held.size()));
    return Status();
  }

  // Tokens beyond the embedding can never be asked for: multimodal models have some.
  void put(const Json& id, const std::string& token, TokenType type) {
    const int64_t number = id.integer().value_or(-1);
    if (number < 0 || number >= count_) return;
    tokens_[static_cast<size_t>(number)] = token;
    types_[static_cast<size_t>(number)] = static_cast<double>(type);
    ids_[token] = number;
  }

  // The special token that a post-processor puts in front of a text, if any.
  static std::string token_in_front(const Json& processor) {
    if (const Json::Array* processors = processor["processors"].array())
      for (const Json& each : *processors)
        if (const std::string found = token_in_front(each); !found.empty()) return found;
    const Json::Array* single = processor["single"].array();
    if (single == nullptr || single->empty()) return "";
    const std::string* name = (*single)[0]["SpecialToken"]["id"].string();
    return name ? *name : "";
  }

  Status read_settings() {
    Json settings, generation;
    for (const auto& [name, into] : {std::pair<const char*, Json*>{"/tokenizer_config.json", &settings}, {"/generation_config.json", &generation}}) {
      if (!std::filesystem::exists(path_ + name)) continue;
      auto read = read_json_file(path_ + name);
      if (!read.ok()) return read.status();
      *into = read.take();
    }
    set_token("bos", begins_with_.empty() ? text_of_token(settings["bos_token"]) : begins_with_, config_["bos_token_id"]);
    set_token("eos", text_of_token(settings["eos_token"]), config_["eos_token_id"]);
    model_.set("tokenizer.ggml.add_bos_token", settings["add_bos_token"].boolean().value_or(!begins_with_.empty()));
    std::vector<double> stops;
    for (const Json* ids : {&config_["eos_token_id"], &generation["eos_token_id"]})
      for (const int64_t id : ids_of(*ids)) stops.push_back(static_cast<double>(id));
    model_.set(stop_tokens_key, std::move(stops));
    return read_template(settings["chat_template"]);
  }

  void set_token(const std::string& name, const std::string& token, const Json& fallback) {
    const std::string key = "tokenizer.ggml." + name + "_token_id";
    if (const auto found = ids_.find(token); found != ids_.end() && !token.empty())
      model_.set(key, found->second);
    else if (const std::vector<int64_t> ids = ids_of(fallback); !ids.empty())
      model_.set(key, ids[0]);
  }

  // A file of its own, or a string, or one of several by the name "default".
  Status read_template(const Json& setting) {
    if (std::filesystem::exists(path_ + "/chat_template.jinja")) {
      auto file = MappedFile::open(path_ + "/chat_template.jinja");
      if (!file.ok()) return file.status();
      const auto bytes = file.value().bytes();
      model_.set("tokenizer.chat_template", std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
      return Status();
    }
    if (const std::string* own = setting.string()) model_.set("tokenizer.chat_template", *own);
    if (const Json::Array* several = setting.array())
      for (const Json& each : *several)
        if (each["name"].string() && *each["name"].string() == "default" && each["template"].string())
          model_.set("tokenizer.chat_template", *each["template"].string());
    return Status();
  }

  const std::string& path_;
  const Json& config_;
  ModelFile& model_;
  int64_t count_ = 0;
  std::vector<std::string> tokens_;
  std::vector<double> types_;
  std::unordered_map<std::string, int64_t> ids_;
  std::string begins_with_;
};

}  // namespace

Status set_tokenizer(const std::string& path, const Json& config, ModelFile& model) { return TokenizerReader(path, config, model).read(); }

}  // namespace millrace
