// RoPE's frequencies, and the ways of stretching them over more positions than a model was first trained on.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "reader.h"

namespace millrace {

// Reads one Rope. Sources: linear, Chen et al. 2023; YaRN, Peng et al. 2023; longrope, Ding et al. 2024; llama3, Llama 3.1's own.
class RopeReader {
 public:
  RopeReader(ModelReader& read, const Model& model, const std::string& base_key, double base_default) : read_(read), model_(model) {
    dims_ = read.count_or("rope.dimension_count", model.config.head_dim, model.config.head_dim);
    if (dims_ % 2 != 0) read.fail(text("has heads of ", model.config.head_dim, " dimensions, ", dims_, " of them turning; even numbers are run"));
    base_ = read.number_or(base_key, base_default);
    if (!(base_ > 1)) read.fail(text("gives ", base_key, " as ", base_, ", not over 1"));
  }

  Rope read(bool scaled) {
    rope_.style = style();
    for (int i = 0; i < dims_ / 2; i++) frequencies_.push_back(std::pow(base_, -2.0 * i / dims_));
    if (scaled) stretch();
    rope_.frequencies.assign(frequencies_.begin(), frequencies_.end());
    return rope_;
  }

 private:
  void stretch() {
    const std::string scaling = read_.word_or("rope.scaling.type", "none");
    const double factor = read_.number_or("rope.scaling.factor", 1);
    if (!(factor > 0)) read_.fail(text("stretches RoPE by ", factor, ", not over 0"));
    rope_.original_context = read_.count_or("rope.scaling.original_context_length", model_.config.context, 1 << 24);
    if (scaling == "linear")
      for (double& frequency : frequencies_) frequency /= factor;
    else if (scaling == "llama3")
      stretch_llama3(factor);
    else if (scaling == "yarn")
      stretch_yarn(factor);
    else if (scaling == "longrope" || (scaling == "none" && read_.has("rope_factors_long.weight")))
      stretch_long();
    else if (scaling != "none")
      read_.fail("scales RoPE by \"" + scaling + "\", which this engine does not do; it does linear, llama3, yarn and longrope");
    // Llama 3's scaling as GGUF has it: worked out beforehand.
    if (read_.has("rope_freqs.weight")) divide(frequencies_, "rope_freqs.weight");
  }

  Rope::Style style() {
    // GGUF says it by the architecture's name alone; other formats by a key.
    const bool interleaves = read_.prefix_ == "llama";
    const std::string style = read_.file_.string(rope_style_key).value_or(interleaves ? "interleaved" : "halves");
    if (style != "interleaved" && style != "halves") read_.fail(text("gives ", rope_style_key, " as \"", style, "\""));
    return style == "interleaved" ? Rope::Style::interleaved : Rope::Style::halves;
  }

  // Turns of pair i over the original context.
  double turns(size_t i) const { return rope_.original_context * frequencies_[i] / (2 * std::numbers::pi); }

  // Pairs that turn often stay, those that hardly turn are slowed down, those between are mixed.
  void stretch_llama3(double factor) {
    const double low = read_.number_or("rope.scaling.low_freq_factor", 1), high = read_.number_or("rope.scaling.high_freq_factor", 4);
    if (!(low < high)) return read_.fail(text("scales RoPE between ", low, " and ", high, " turns"));
    for (size_t i = 0; i < frequencies_.size(); i++) {
      const double keep = std::clamp((turns(i) - low) / (high - low), 0.0, 1.0);
      frequencies_[i] *= keep + (1 - keep) / factor;
    }
  }

  // The same between the pairs that turn beta_fast and beta_slow times, mixed by the pair's number; and attention made more pointed.
  void stretch_yarn(double factor) {
    const double fast = read_.number_or("rope.scaling.yarn_beta_fast", 32), slow = read_.number_or("rope.scaling.yarn_beta_slow", 1);
    const auto pair_that_turns = [&](double times) {
      return dims_ * std::log(rope_.original_context / (times * 2 * std::numbers::pi)) / (2 * std::log(base_));
    };
    double first = pair_that_turns(fast), last = pair_that_turns(slow);
    if (read_.flag_or("rope.scaling.yarn_truncate", read_.prefix_ != "gpt-oss")) {
      first = std::floor(first);
      last = std::ceil(last);
    }
    first = std::max(first, 0.0);
    last = std::min(last, dims_ - 1.0);
    if (first == last) last += 0.001;
    for (size_t i = 0; i < frequencies_.size(); i++) {
      const double slowed = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
      frequencies_[i] *= 1 - slowed + slowed / factor;
    }
    const double pointed = factor > 1 ? 0.1 * std::log(factor) + 1 : 1;
    rope_.attention_factor = read_.number_or("rope.scaling.yarn_attn_factor", pointed * read_.number_or("rope.scaling.attn_factor", 1));
  }

  // A divisor of its own for each pair, one list for short contexts and one for long ones.
  void stretch_long() {
    const double stretch = static_cast<double>(model_.config.context) / rope_.original_context;
    const double pointed = stretch > 1 ? std::sqrt(1 + std::log(stretch) / std::log(rope_.original_context)) : 1;
    rope_.attention_factor = read_.number_or("rope.scaling.attn_factor", pointed);
    std::vector<double> slow = frequencies_;
    divide(slow, "rope_factors_long.weight");
    rope_.frequencies_long.assign(slow.begin(), slow.end());
    divide(frequencies_, "rope_factors_short.weight");
  }

  void divide(std::vector<double>& frequencies, const std::string& name) {
    const FileTensor* tensor = read_.tensor(name, 1, dims_ / 2);
    if (!read_.ok()) return;
    std::vector<float> divisors(frequencies.size());
    read_row(*tensor, 0, divisors.data());
    for (size_t i = 0; i < divisors.size(); i++) frequencies[i] /= static_cast<double>(divisors[i]);
  }

  ModelReader& read_;
  const Model& model_;
  int dims_;
  double base_;
  std::vector<double> frequencies_;
  Rope rope_;
};

int ModelReader::rope(Model& model, const std::string& base_key, double base_default, bool scaled) {
  model.ropes.push_back(RopeReader(*this, model, base_key, base_default).read(scaled));
  return static_cast<int>(model.ropes.size()) - 1;
}

}  // namespace millrace
