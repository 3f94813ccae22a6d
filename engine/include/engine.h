// The engine's one public face: load a model, submit requests, receive each step's events, close.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "status.h"

namespace millrace {

enum class KernelSet { automatic, reference, avx2, avx512 };

enum class Precision {
  stored,   // weights as the file has them, activations in 8 bits where the weights are quantized, KV in float16
  float32,  // weights dequantized at load, activations and KV in float32: the yardstick
};

struct EngineOptions {
  std::string path;              // a GGUF v3 file, any part of a split one, or a Hugging Face directory
  int threads = 0;               // 0: what affinity and the cgroup allow
  int context_tokens = 0;        // 0: the model's own, at most 8,192
  uint64_t kv_memory_bytes = 0;  // 0: computed from what the machine has free
  int slots = 32;                // sequences decoded at once
  KernelSet kernels = KernelSet::automatic;
  Precision precision = Precision::stored;
};

struct SamplingOptions {
  float temperature = 0;  // 0: greedy
  int top_k = 0;          // 0: all
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint64_t seed = 0;
};

struct Request {
  uint32_t id = 0;  // the caller's choice, of no other request under way
  std::vector<int32_t> prompt;
  int tokens_max = 0;
  SamplingOptions sampling;
  std::vector<std::string> stops;
};

enum class EventKind : uint8_t { queued, started, tokens, finished };
enum class Finish : uint8_t { stop, length, cancelled, closed, failed };

struct Event {
  uint32_t request = 0;
  uint32_t seq = 0;  // tokens sampled so far; for `queued` the place, from 1
  EventKind kind = EventKind::queued;
  Finish finish = Finish::stop;
  std::vector<int32_t> ids;  // the tokens released
  std::string text;          // whole code points
  uint32_t queue_us = 0, prefill_us = 0, decode_us = 0, prompt_tokens = 0;  // `finished` only
};

struct ModelInfo {
  std::string name;  // the file's, without its ending: what a person calls the model
  std::string architecture;
  uint64_t parameters = 0;
  int context_tokens = 0;
  int vocabulary_size = 0;
  std::string kernels;  // "avx512", "avx2" or "reference"
  int threads = 0;
  std::vector<int32_t> stop_tokens;
  std::vector<std::string> log;
};

struct EngineStats {
  int running = 0, waiting = 0, slots = 0;
  uint64_t kv_bytes_mapped = 0, kv_bytes_max = 0;
  uint64_t steps = 0, tokens = 0, prompt_tokens = 0;
};

struct Vocabulary;

// All methods may be called from any thread. Events come from the engine's own thread, once a step, in order.
class Engine {
 public:
  using OnStep = std::function<void(std::span<const Event>)>;

  // Reads and prepares the model; takes seconds, so call it off any event loop.
  static Result<std::unique_ptr<Engine>> load(const EngineOptions& options, OnStep on_step);
  ~Engine();

  const ModelInfo& info() const;
  const Vocabulary& vocabulary() const;

  // Queues a request; refuses one that cannot ever run, with the numbers. Its last event is always `finished`.
  Status submit(Request request);
  // Ends a request wherever it stands; no tokens follow its `finished`. Unknown ids are ignored.
  void cancel(uint32_t request);
  EngineStats stats() const;

  // Teacher-forced logits of every position, [tokens][vocabulary]. Waits for its turn between steps.
  Result<std::vector<float>> evaluate(std::vector<int32_t> tokens, int chunk_tokens);

  // Ends all work (each request gets its `finished`) and joins the threads. Safe to call twice.
  void close();

 private:
  struct Implementation;
  explicit Engine(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace millrace
