// What a benchmark of the whole engine runs, as its command line has it.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "engine.h"

namespace millrace::bench {

// Precision is stored, fp8 or deterministic, on a GPU, each with keys and values in 8 bits where "-kv8" follows; or float32 on a CPU, or cpu, as
// stored on a CPU: that tells nothing of a GPU, but whether the benchmark works.
struct Case {
  std::string path, precision;

  EngineOptions options() const {
    const std::string kv8 = "-kv8";
    const bool has_kv8 = precision.ends_with(kv8);
    const std::string base = has_kv8 ? precision.substr(0, precision.size() - kv8.size()) : precision;
    EngineOptions options{.path = path, .kernels = base == "cpu" || base == "float32" ? KernelSet::cpu : KernelSet::hopper};
    if (base == "float32") options.precision = Precision::float32;
    if (base == "fp8") options.precision = Precision::fp8;
    if (has_kv8) options.kv_type = KvType::q8;
    options.deterministic = base == "deterministic";
    options.plans_ahead = base == "cpu";
    return options;
  }
};

// Ends the program where the model cannot be loaded.
inline std::unique_ptr<Engine> load(const EngineOptions& options, Engine::OnStep on_step) {
  auto loaded = Engine::load(options, std::move(on_step));
  if (!loaded.ok()) {
    std::printf("%s\n", loaded.message().c_str());
    std::exit(1);
  }
  std::unique_ptr<Engine> engine = loaded.take();
  for (const std::string& line : engine->info().log) std::printf("# %s\n", line.c_str());
  return engine;
}

// As load, and then lets it get ready what it does while nobody asks for anything: graphs, and the ways of products.
inline std::unique_ptr<Engine> load_and_rest(const EngineOptions& options, Engine::OnStep on_step) {
  std::unique_ptr<Engine> engine = load(options, std::move(on_step));
  if (options.kernels != KernelSet::cpu) std::this_thread::sleep_for(std::chrono::seconds(4));
  return engine;
}

}  // namespace millrace::bench
