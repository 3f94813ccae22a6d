// What every architecture's file needs to turn a GGUF into a Model: keys and tensors that must be there, in the shape they must have.
// The first thing missing or misshapen is kept and reported; nothing in the file may be left over.
#pragma once

#include <string>
#include <unordered_set>

#include "../base/text.h"
#include "../format/model_file.h"
#include "status.h"

namespace millrace {

class ModelReader {
 public:
  ModelReader(const ModelFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  // The integer `prefix.key`, from 1 to max.
  int count(const std::string& key, int64_t max) { return checked(key, file_.integer(prefix_ + "." + key), max); }
  int count_or(const std::string& key, int fallback, int64_t max) {
    const auto value = file_.integer(prefix_ + "." + key);
    return value ? checked(key, value, max) : fallback;
  }
  float number_or(const std::string& key, double fallback) const {
    return static_cast<float>(file_.number(prefix_ + "." + key).value_or(fallback));
  }

  // A tensor of exactly this shape.
  const FileTensor* tensor(const std::string& name, int64_t rows, int64_t columns) {
    const FileTensor* found = file_.tensor(name);
    if (found == nullptr) return fail("lacks the tensor " + name), nullptr;
    used_.insert(name);
    if (found->rows() != rows || found->columns() != columns)
      fail(text("has tensor ", name, " of ", found->rows(), " x ", found->columns(), " where its metadata call for ", rows, " x ", columns));
    return found;
  }
  bool has(const std::string& name) const { return file_.tensor(name) != nullptr; }

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what;
  }
  bool ok() const { return error_.empty(); }

  // Success only if every tensor of the file was asked for: one that nobody reads means a model other than the one we would run.
  Status finish() {
    for (const FileTensor& tensor : file_.tensors())
      if (!used_.contains(tensor.name)) fail("has the tensor " + tensor.name + ", which this architecture does not use here");
    return ok() ? Status() : Status::error(file_.path() + " " + error_);
  }

 private:
  int checked(const std::string& key, const std::optional<int64_t>& value, int64_t max) {
    if (!value || *value < 1 || *value > max) {
      fail(text("gives ", prefix_, ".", key, " as ", value ? text(*value) : "nothing", ", not 1 to ", max));
      return 1;
    }
    return static_cast<int>(*value);
  }

  const ModelFile& file_;
  const std::string prefix_;
  std::unordered_set<std::string> used_;
  std::string error_;
};

}  // namespace millrace
