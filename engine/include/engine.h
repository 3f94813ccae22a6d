// The engine's one public face: load a model, submit requests, receive each step's events, close.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "status.h"

namespace millrace {

// automatic: a Hopper GPU's where there is one, else the best of the CPU's; cpu: those.
enum class KernelSet { automatic, cpu, reference, avx2, avx512, hopper };

enum class Precision {
  stored,   // weights as the file has them, activations in 8 bits where the weights are quantized, KV in float16; on a GPU weights, activations and KV in
            // bfloat16, but for weights in 4 bits, which stay that
  fp8,      // on a GPU: matrices in E4M3 with a scale for each row, but for the embedding, the LM head, experts and routers
  float32,  // weights dequantized at load, activations and KV in float32: the yardstick
};

// How keys and values are kept where the precision is as stored.
enum class KvType {
  f16,  // on a GPU bfloat16
  q8,   // 8 bits and a float16 scale for each token and head, little more than half the memory; on a GPU E4M3 with scales from the weights, a half
};

struct EngineOptions {
  std::string path;              // a GGUF v3 file, any part of a split one, or a Hugging Face directory
  int threads = 0;               // 0: what affinity and the cgroup allow
  int context_tokens = 0;        // 0: the model's own, at most 8,192
  uint64_t kv_memory_bytes = 0;  // 0: computed from what the machine has free
  int slots = 32;                // sequences decoded at once
  KernelSet kernels = KernelSet::automatic;
  Precision precision = Precision::stored;
  KvType kv_type = KvType::f16;
  bool deterministic = false;    // on a GPU, the same bits in any company, more slowly; a CPU has them always
  bool plans_ahead = false;      // on a CPU, one step, as a GPU does: for tests
  bool prefix_cache = true;      // keeps what ended sequences computed, for those that begin alike
};

constexpr int logprobs_max = 20;
constexpr size_t biases_max = 1024;

struct TokenBias {
  int32_t token = 0;
  float bias = 0;
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
  int logprobs = -1;             // told with each token: its own log-probability and those of so many likeliest; -1: none
  std::vector<TokenBias> bias;   // added to logits, before penalties

  bool has_penalties() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

enum class ServiceClass : uint8_t { voice, chat, batch };

// What is asked for: token i by ttft_us + (i - 1) * itl_us after the request was submitted.
struct Deadlines {
  int64_t ttft_us = 2'000'000;
  int64_t itl_us = 150'000;
  int64_t wait_us_max = std::numeric_limits<int64_t>::max();  // how long it would rather wait than be refused; 0: not at all
};

// What an answer must be: JSON by a schema, text that a regular expression matches as a whole, or a grammar in GBNF with the rule `root`.
struct Format {
  enum class Kind : uint8_t { json_schema, regex, grammar };
  Kind kind = Kind::json_schema;
  std::string text;
};

class Grammar;  // a format compiled for one engine

struct Request {
  uint32_t id = 0;  // the caller's choice, of no other request under way
  std::vector<int32_t> prompt;
  std::vector<int32_t> continued;  // the answer's first tokens, sampled elsewhere: they count in all that follows, and are told as others are
  int tokens_max = 0;
  int tokens_min = 0;        // no stop token is sampled before, and no stop string found in the text of so many tokens
  bool ignores_end = false;  // stop tokens are tokens like others; stop strings still end the answer
  SamplingOptions sampling;
  std::vector<std::string> stops;
  std::shared_ptr<const Grammar> grammar;  // of Engine::compile; it alone says where the answer may end, and nothing is continued by it
  ServiceClass service = ServiceClass::chat;
  Deadlines deadlines;
  uint32_t tenant = 0;       // tenants of one class share by weight
  double tenant_weight = 1;
};

enum class Verdict : uint8_t { accepted, queued, refused };

// The answer to a request, given at once.
struct Decision {
  Verdict verdict = Verdict::accepted;
  int64_t ttft_us = 0, itl_us = 0;  // accepted: the promise
  int64_t wait_us = 0;              // queued: how long it is expected to wait before anything can be promised
  int64_t retry_after_us = 0;       // refused: when the same request may find room; 0: never
};

enum class EventKind : uint8_t { queued, started, tokens, finished };
enum class Finish : uint8_t { stop, length, cancelled, closed, failed };

// By the model's own distribution: log-softmax of the logits as they come, before bias, penalties and temperature.
struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct Event {
  uint32_t request = 0;
  uint32_t seq = 0;  // the answer's tokens so far, for `tokens` of those released; for `queued` the place, from 1
  EventKind kind = EventKind::queued;
  Finish finish = Finish::stop;
  std::vector<int32_t> ids;    // the tokens released; those that the request brought have events of their own
  std::vector<uint32_t> ends;  // [ids], where each one's text ends in `text`, in bytes; the last is all of it
  std::string text;            // whole code points; of `finished`, why it failed
  std::vector<TokenLogprob> logprobs;  // [ids][1 + the request's logprobs], the token itself and then the likeliest; or none, as of those brought
  uint32_t queue_us = 0, prefill_us = 0, decode_us = 0, prompt_tokens = 0;  // `finished` only
  uint32_t cached_tokens = 0;  // likewise: of the prompt, those that were in memory already
};

// What the matrices of a model ask of a step. Of experts, those that one token uses.
struct MatrixWork {
  uint64_t weight_bytes = 0;          // read by a step, as they are packed
  uint64_t token_multiply_adds = 0;   // by each token
  uint64_t sample_multiply_adds = 0;  // by each token that is sampled, beside those
};

struct ModelInfo {
  std::string name;  // the file's, without its ending: what a person calls the model
  std::string architecture;
  uint64_t parameters = 0;
  int context_tokens = 0;
  int vocabulary_size = 0;
  std::string kernels;  // "hopper", "avx512", "avx2" or "reference"
  std::string device;   // the GPU's name; empty on a CPU
  int threads = 0;
  std::vector<int32_t> stop_tokens;
  std::vector<std::string> log;
  MatrixWork work;
  bool has_formats = false;  // built with constrained output
};

struct EngineStats {
  int running = 0, waiting = 0, slots = 0;
  uint64_t kv_bytes_mapped = 0, kv_bytes_max = 0;
  uint64_t kv_bytes_held = 0;      // of those mapped, by keys and values of tokens; as of the last second in which anything ran
  uint64_t kv_bytes_promised = 0;  // to those that run: what they have and may yet need
  uint64_t steps = 0, tokens = 0;
  uint64_t prompt_tokens = 0;  // computed, of prompts and of what answers were continued with
  struct {
    uint64_t hits = 0;            // requests that found some of their prompt in memory,
    uint64_t hit_tokens = 0;      // so many tokens in all
    uint64_t evicted_tokens = 0;  // that made room for others
  } prefix_cache;
  // Tokens that came after they were due, by what held them up.
  struct {
    uint64_t queueing = 0, prefill = 0, step_time = 0, mapping = 0, reader = 0;
  } misses;
  // What a step is expected to take: so much itself, and for each row, token computed, token sampled, position read, and pair of a prompt's token and a
  // position that it attends to.
  struct {
    double step_us = 0, row_us = 0, token_us = 0, sample_us = 0, context_us = 0, pair_us = 0;
  } step_costs;
};

struct Vocabulary;

// All methods may be called from any thread. Events come from the engine's own thread, once a step, in order.
class Engine {
 public:
  // One that throws has heard nothing: the engine then ends, telling each event alone.
  using OnStep = std::function<void(std::span<const Event>)>;

  // Reads and prepares the model; takes seconds, so call it off any event loop.
  static Result<std::unique_ptr<Engine>> load(const EngineOptions& options, OnStep on_step);
  ~Engine();

  const ModelInfo& info() const;
  const Vocabulary& vocabulary() const;

  // A format for requests, from those compiled of late or anew: that takes from a millisecond to seconds, so call it off any event loop.
  Result<std::shared_ptr<const Grammar>> compile(const Format& format);

  // Answers at once: what it can promise, or an error that says, with the numbers, why the request is refused; `decision` has then when to
  // retry, where that helps. Unless refused, its last event is always `finished`.
  Status submit(Request request, Decision* decision = nullptr);
  // Ends a request wherever it stands; no tokens follow its `finished`. Unknown ids are ignored.
  void cancel(uint32_t request);
  // Its reader takes nothing for now: it sits steps out, and leaves its slot when others want it; a step under way may still yield a token.
  // Then again: it goes on with the token that it would have had. Unknown ids are ignored.
  void pause(uint32_t request);
  void resume(uint32_t request);
  EngineStats stats() const;

  // Teacher-forced logits of every position, [tokens][vocabulary]. Waits for its turn between steps.
  Result<std::vector<float>> evaluate(std::vector<int32_t> tokens, int chunk_tokens);

  // Ends all work (each request gets its `finished`), joins the threads and frees the model and its memory; what is known of them stays to be
  // read. Safe to call twice.
  void close();

 private:
  struct Implementation;
  explicit Engine(std::unique_ptr<Implementation> implementation);
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace millrace
