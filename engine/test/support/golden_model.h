// The fixtures of scripts/golden-models.py: tiny checkpoints, and what Hugging Face transformers says of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/team.h"
#include "cpu/backend.h"
#include "kv/slots.h"
#include "model/model.h"

namespace millrace::test {

struct GoldenPrompt {
  int context = 0;  // that the model is to be loaded with
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions, ids;
  std::vector<float> logits;  // [positions][ids]
};

struct GoldenModel {
  std::string name;  // of its directory
  std::vector<GoldenPrompt> prompts;
  float deviation = 0;  // of all its logits

  std::string path() const;
};

// Names of all fixtures, in order.
std::vector<std::string> golden_models();
GoldenModel read_golden(const std::string& name);
// A fixture's file, and its model, which points into the file.
std::pair<std::unique_ptr<ModelFile>, Model> open_golden(const GoldenModel& golden);

// What a fixture runs on: how its pages are kept, and who computes.
struct GoldenMachine {
  KvElement element;
  int64_t granule_bytes;
  std::function<Result<std::unique_ptr<KvPages>>(int64_t places, int64_t page_bytes, int pages_max)> reserve;
  std::function<std::unique_ptr<Backend>(const ModelFile&, const Model&, const KvSlots&, Team&, int slots, int context_tokens, int step_tokens_max)> make;
};
GoldenMachine golden_cpu(const Kernels& kernels, Precision precision = Precision::float32);

// A fixture's model on some machine, its operators edited before they are packed.
class GoldenRun {
 public:
  using Edit = std::function<void(Model&)>;
  // How many of a prompt's tokens its next row takes, at most.
  using Count = std::function<int(int step, size_t prompt)>;

  GoldenRun(const GoldenModel& golden, GoldenMachine machine, const Edit& edit = {});
  GoldenRun(const GoldenModel& golden, const Kernels& kernels, const Edit& edit = {}, Precision precision = Precision::float32)
      : GoldenRun(golden, golden_cpu(kernels, precision), edit) {}

  // Logits of all prompts, [prompt][tokens * vocabulary]: one after another, or all that share a context in each step.
  std::vector<std::vector<float>> evaluate(bool together, const Count& count);
  const Model& model() const { return model_; }

 private:
  void evaluate(const std::vector<size_t>& prompts, const Count& count, std::vector<std::vector<float>>& logits);

  const GoldenModel& golden_;
  const GoldenMachine machine_;
  std::unique_ptr<ModelFile> file_;
  Model model_;
};

// The largest error of any kept logit, as a share of their deviation.
double error_of(const GoldenModel& golden, const std::vector<std::vector<float>>& logits);

}  // namespace millrace::test
