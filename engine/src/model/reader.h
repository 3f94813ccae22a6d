// What an architecture's file needs to turn a stored model into operators: keys and tensors that must be there, in the shape they must
// have. The first thing missing or misshapen is kept and reported; of tensors, and of keys that change what is computed, nothing may be
// left over: what nobody reads means a model other than the one we would run.
#pragma once

#include <string>
#include <unordered_set>

#include "../base/text.h"
#include "model.h"
#include "status.h"

namespace millrace {

class ModelReader {
 public:
  // Keys are read under `prefix`, which is the architecture's name.
  ModelReader(const ModelFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  // The model's name and numbers, which all architectures keep under the same keys. Its operators are still to come.
  Model begin();

  // The integer `prefix.key`, from 1 to max.
  int count(const std::string& key, int64_t max) { return checked(key, file_.integer(full(key)), max); }
  int count_or(const std::string& key, int fallback, int64_t max) {
    const auto value = file_.integer(full(key));
    return value ? checked(key, value, max) : fallback;
  }
  float number_or(const std::string& key, double fallback) { return static_cast<float>(file_.number(full(key)).value_or(fallback)); }
  bool flag_or(const std::string& key, bool fallback) { return file_.boolean(full(key)).value_or(fallback); }
  std::string word_or(const std::string& key, const std::string& fallback) { return file_.string(full(key)).value_or(fallback); }

  // A tensor of exactly this shape.
  const FileTensor* tensor(const std::string& name, int64_t rows, int64_t columns);
  bool has(const std::string& name) const { return file_.tensor(name) != nullptr; }
  // `name`.weight, and `name`.bias where the file has one.
  Linear linear(const std::string& name, int64_t rows, int64_t columns);
  // `name`.weight over n values, with the epsilon of its kind; a norm of kind `layer` has a bias.
  Norm rms(const std::string& name, int n);
  Norm layer_norm(const std::string& name, int n);

  // RoPE with the base of that key and, if `scaled`, whatever scaling the file asks for; its index in model.ropes.
  int rope(Model& model, const std::string& base_key = "rope.freq_base", double base_default = 10000, bool scaled = true);
  // How many positions a layer sees: all (0), or a window's. Every full_every-th layer sees all where the file does not say which do.
  int window(int layer, int full_every = 0);

  // Operators with the tensors that most architectures name alike. What differs is then set in what is returned.
  Embed embed(const Model& model);
  Qkv qkv(const Model& model, int layer, const Norm& norm, int rope);
  Project project(const Model& model, int layer);
  GateUp gate_up(const Model& model, int layer, const Norm& norm, Activation activation);
  Down down(const Model& model, int layer);
  Experts experts(Model& model, int layer, const Norm& norm, Activation activation);
  Logits logits(const Model& model, const Norm& norm);

  // Rows first to first + count - 1 of a tensor as a tensor of their own.
  static const FileTensor* slice(Model& model, const FileTensor* tensor, int64_t first, int64_t count);

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }
  bool ok() const { return error_.empty(); }
  // What was wrong, or left over.
  Status finish();

 private:
  std::string full(const std::string& key);
  int checked(const std::string& key, const std::optional<int64_t>& value, int64_t max);
  void check_numbers(const ModelConfig& config);
  int ffn(const std::string& key);

  friend class RopeReader;
  const ModelFile& file_;
  const std::string prefix_;
  std::unordered_set<std::string> used_tensors_, used_keys_;
  std::string error_;
};

// The first part of a block's tensors' names.
inline std::string block(int layer) { return "blk." + std::to_string(layer) + "."; }

}  // namespace millrace
