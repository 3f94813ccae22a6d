// The Node addon: translates between JavaScript and engine.h, and neither checks (index.ts does) nor computes (the engine does).
// Loading, evaluating and closing run on libuv's threads; a step's events reach JavaScript as one flat buffer, one call a step.
#include <napi.h>

#include <memory>
#include <mutex>
#include <span>

#include "engine.h"
#include "events.h"
#include "values.h"
#include "work.h"

namespace millrace {
namespace {

// The way from the engine's thread into JavaScript. Node may take it down before the engine ends, when the process exits with work in
// flight: from then on steps go nowhere.
class StepChannel {
 public:
  static std::shared_ptr<StepChannel> open(Napi::Env env, const Napi::Function& on_step) {
    const auto channel = std::make_shared<StepChannel>();
    // The finalizer keeps the channel, so that it outlives the function whichever goes first.
    channel->function_ = Napi::ThreadSafeFunction::New(env, on_step, "millrace step", 0, 1, [channel](Napi::Env) {
      const std::lock_guard lock(channel->mutex_);
      channel->open_ = false;
    });
    channel->function_.Unref(env);
    return channel;
  }

  // From any thread. The array that arrives in JavaScript owns its bytes.
  void deliver(std::span<const Event> events) {
    auto bytes = std::make_unique<std::vector<uint8_t>>(flatten(events));
    const std::lock_guard lock(mutex_);
    if (!open_) return;
    const napi_status status = function_.NonBlockingCall(bytes.get(), [](Napi::Env env, Napi::Function call, std::vector<uint8_t>* owned) {
      const std::unique_ptr<std::vector<uint8_t>> keep(owned);
      if (env == nullptr) return;  // the environment went while the call waited
      Napi::Uint8Array array = Napi::Uint8Array::New(env, keep->size());
      std::copy(keep->begin(), keep->end(), array.Data());
      call.Call({array});
    });
    if (status == napi_ok) bytes.release();
  }

  // From JavaScript's thread: whether steps to come hold the process open.
  void hold_open(Napi::Env env, bool hold) {
    const std::lock_guard lock(mutex_);
    if (!open_) return;
    if (hold)
      function_.Ref(env);
    else
      function_.Unref(env);
  }

  // From JavaScript's thread, once nothing will be delivered any more.
  void close() {
    const std::lock_guard lock(mutex_);
    if (open_) function_.Release();
    open_ = false;
  }

 private:
  Napi::ThreadSafeFunction function_;
  std::mutex mutex_;
  bool open_ = true;
};

using HeldGrammar = std::shared_ptr<const Grammar>;

// What JavaScript holds. The engine is shared with work under way, so that it outlives the wrapper where it must.
class NativeEngine final : public Napi::ObjectWrap<NativeEngine> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeEngine",
                       {InstanceMethod("info", &NativeEngine::info), InstanceMethod("vocabulary", &NativeEngine::vocabulary),
                        InstanceMethod("compile", &NativeEngine::compile), InstanceMethod("submit", &NativeEngine::submit),
                        InstanceMethod("cancel", &NativeEngine::cancel), InstanceMethod("pause", &NativeEngine::pause),
                        InstanceMethod("resume", &NativeEngine::resume),
                        InstanceMethod("stats", &NativeEngine::stats), InstanceMethod("evaluate", &NativeEngine::evaluate),
                        InstanceMethod("holdOpen", &NativeEngine::hold_open), InstanceMethod("close", &NativeEngine::close)});
  }

  explicit NativeEngine(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeEngine>(info) {}
  void hold(std::shared_ptr<Engine> engine, std::shared_ptr<StepChannel> channel) {
    engine_ = std::move(engine);
    channel_ = std::move(channel);
  }

 private:
  Napi::Value info(const Napi::CallbackInfo& call) {
    const ModelInfo& model = engine_->info();
    Napi::Object object = Napi::Object::New(call.Env());
    object.Set("name", model.name);
    object.Set("architecture", model.architecture);
    object.Set("parameters", static_cast<double>(model.parameters));
    object.Set("contextTokens", model.context_tokens);
    object.Set("vocabularySize", model.vocabulary_size);
    object.Set("kernels", model.kernels);
    object.Set("device", model.device);
    object.Set("threads", model.threads);
    Napi::Array stops = Napi::Array::New(call.Env());
    for (size_t i = 0; i < model.stop_tokens.size(); i++) stops.Set(static_cast<uint32_t>(i), model.stop_tokens[i]);
    object.Set("stopTokens", stops);
    object.Set("log", strings(call.Env(), model.log));
    Napi::Object work = Napi::Object::New(call.Env());
    work.Set("weightBytes", static_cast<double>(model.work.weight_bytes));
    work.Set("tokenMultiplyAdds", static_cast<double>(model.work.token_multiply_adds));
    work.Set("sampleMultiplyAdds", static_cast<double>(model.work.sample_multiply_adds));
    object.Set("work", work);
    object.Set("hasFormats", model.has_formats);
    return object;
  }

  Napi::Value vocabulary(const Napi::CallbackInfo& call) { return object_of(call.Env(), engine_->vocabulary()); }

  // compile(kind, text): Promise<External>, a grammar for `submit`.
  Napi::Value compile(const Napi::CallbackInfo& call) {
    const std::string kind = call[0].As<Napi::String>().Utf8Value();
    Format format{.text = call[1].As<Napi::String>().Utf8Value()};
    format.kind = kind == "regex" ? Format::Kind::regex : kind == "grammar" ? Format::Kind::grammar : Format::Kind::json_schema;
    return Work<std::shared_ptr<const Grammar>>::start(
        call.Env(), [engine = engine_, format] { return engine->compile(format); },
        [](Napi::Env env, std::shared_ptr<const Grammar> grammar) -> Napi::Value {
          return Napi::External<HeldGrammar>::New(env, new HeldGrammar(std::move(grammar)), [](Napi::Env, HeldGrammar* held) { delete held; });
        });
  }

  Napi::Value submit(const Napi::CallbackInfo& call) {
    const Napi::Object given = call[1].As<Napi::Object>();
    Request request;
    request.id = call[0].As<Napi::Number>().Uint32Value();
    request.prompt = ids(given.Get("prompt"));
    request.continued = ids(given.Get("continueIds"));
    request.tokens_max = static_cast<int>(number(given, "maxTokens", 1));
    request.tokens_min = static_cast<int>(number(given, "minTokens", 0));
    request.ignores_end = given.Get("ignoreEos").ToBoolean();
    request.sampling = sampling(given);
    const Napi::Array stops = given.Get("stop").As<Napi::Array>();
    for (uint32_t i = 0; i < stops.Length(); i++) request.stops.push_back(stops.Get(i).As<Napi::String>().Utf8Value());
    if (given.Get("grammar").IsExternal()) request.grammar = *given.Get("grammar").As<Napi::External<HeldGrammar>>().Data();
    read_terms(given, request);
    Decision decision;
    const Status status = engine_->submit(std::move(request), &decision);
    if (status.ok()) return admission(call.Env(), decision);
    Napi::Error error = Napi::Error::New(call.Env(), status.message());
    if (decision.verdict == Verdict::refused) error.Set("retryAfterMs", static_cast<double>((decision.retry_after_us + 999) / 1000));
    throw error;
  }

  static Napi::Value admission(Napi::Env env, const Decision& decision) {
    const auto milliseconds = [](int64_t us) { return static_cast<double>(us) / 1000; };
    Napi::Object object = Napi::Object::New(env);
    if (decision.verdict == Verdict::queued) {
      object.Set("waitMs", milliseconds(decision.wait_us));
    } else {
      object.Set("ttftMs", milliseconds(decision.ttft_us));
      object.Set("itlMs", milliseconds(decision.itl_us));
    }
    return object;
  }

  static SamplingOptions sampling(const Napi::Object& given) {
    SamplingOptions options{.temperature = static_cast<float>(number(given, "temperature", 0)),
                            .top_k = static_cast<int>(number(given, "topK", 0)),
                            .top_p = static_cast<float>(number(given, "topP", 1)),
                            .min_p = static_cast<float>(number(given, "minP", 0)),
                            .repetition_penalty = static_cast<float>(number(given, "repetitionPenalty", 1)),
                            .presence_penalty = static_cast<float>(number(given, "presencePenalty", 0)),
                            .frequency_penalty = static_cast<float>(number(given, "frequencyPenalty", 0)),
                            .seed = static_cast<uint64_t>(number(given, "seed", 0)),
                            .logprobs = static_cast<int>(number(given, "logprobs", -1))};
    if (!given.Get("logitBias").IsObject()) return options;
    const Napi::Object bias = given.Get("logitBias").As<Napi::Object>();
    const Napi::Array tokens = bias.GetPropertyNames();
    for (uint32_t i = 0; i < tokens.Length(); i++)
      options.bias.push_back({tokens.Get(i).ToNumber().Int32Value(), bias.Get(tokens.Get(i)).ToNumber().FloatValue()});
    return options;
  }

  // What was promised to whom; what is not given stays as engine.h has it.
  static void read_terms(const Napi::Object& given, Request& request) {
    const std::string service = string(given, "service");
    request.service = service == "voice" ? ServiceClass::voice : service == "batch" ? ServiceClass::batch : ServiceClass::chat;
    const auto microseconds = [&given](const char* name, int64_t fallback) {
      const double ms = number(given, name, -1);
      return ms < 0 ? fallback : static_cast<int64_t>(ms * 1000);
    };
    Deadlines& deadlines = request.deadlines;
    deadlines = {microseconds("ttftMs", deadlines.ttft_us), microseconds("itlMs", deadlines.itl_us), microseconds("waitMs", deadlines.wait_us_max)};
    request.tenant = static_cast<uint32_t>(number(given, "tenant", 0));
    request.tenant_weight = number(given, "tenantWeight", 1);
  }

  void cancel(const Napi::CallbackInfo& call) { engine_->cancel(call[0].As<Napi::Number>().Uint32Value()); }

  void pause(const Napi::CallbackInfo& call) { engine_->pause(call[0].As<Napi::Number>().Uint32Value()); }
  void resume(const Napi::CallbackInfo& call) { engine_->resume(call[0].As<Napi::Number>().Uint32Value()); }

  Napi::Value stats(const Napi::CallbackInfo& call) {
    const EngineStats stats = engine_->stats();
    Napi::Object object = Napi::Object::New(call.Env());
    object.Set("running", stats.running);
    object.Set("waiting", stats.waiting);
    object.Set("slots", stats.slots);
    object.Set("kvBytesMapped", static_cast<double>(stats.kv_bytes_mapped));
    object.Set("kvBytesHeld", static_cast<double>(stats.kv_bytes_held));
    object.Set("kvBytesPromised", static_cast<double>(stats.kv_bytes_promised));
    object.Set("kvBytesMax", static_cast<double>(stats.kv_bytes_max));
    object.Set("steps", static_cast<double>(stats.steps));
    object.Set("tokens", static_cast<double>(stats.tokens));
    object.Set("promptTokens", static_cast<double>(stats.prompt_tokens));
    Napi::Object prefixes = Napi::Object::New(call.Env());
    prefixes.Set("hits", static_cast<double>(stats.prefix_cache.hits));
    prefixes.Set("hitTokens", static_cast<double>(stats.prefix_cache.hit_tokens));
    prefixes.Set("evictedTokens", static_cast<double>(stats.prefix_cache.evicted_tokens));
    object.Set("prefixCache", prefixes);
    Napi::Object misses = Napi::Object::New(call.Env());
    misses.Set("queueing", static_cast<double>(stats.misses.queueing));
    misses.Set("prefill", static_cast<double>(stats.misses.prefill));
    misses.Set("stepTime", static_cast<double>(stats.misses.step_time));
    misses.Set("mapping", static_cast<double>(stats.misses.mapping));
    misses.Set("reader", static_cast<double>(stats.misses.reader));
    object.Set("misses", misses);
    Napi::Object costs = Napi::Object::New(call.Env());
    costs.Set("stepUs", stats.step_costs.step_us);
    costs.Set("rowUs", stats.step_costs.row_us);
    costs.Set("tokenUs", stats.step_costs.token_us);
    costs.Set("sampleUs", stats.step_costs.sample_us);
    costs.Set("contextUs", stats.step_costs.context_us);
    costs.Set("pairUs", stats.step_costs.pair_us);
    object.Set("stepCosts", costs);
    return object;
  }

  Napi::Value evaluate(const Napi::CallbackInfo& call) {
    const int chunk_tokens = call[1].As<Napi::Number>().Int32Value();
    return Work<std::vector<float>>::start(
        call.Env(), [engine = engine_, tokens = ids(call[0]), chunk_tokens] { return engine->evaluate(tokens, chunk_tokens); },
        [](Napi::Env env, std::vector<float> logits) { return typed<Napi::Float32Array>(env, logits); });
  }

  Napi::Value close(const Napi::CallbackInfo& call) {
    return Work<bool>::start(
        call.Env(),
        [engine = engine_]() -> Result<bool> {
          engine->close();
          return true;
        },
        [channel = channel_](Napi::Env env, bool) {
          channel->close();
          return env.Undefined();
        });
  }

  void hold_open(const Napi::CallbackInfo& call) { channel_->hold_open(call.Env(), call[0].As<Napi::Boolean>().Value()); }

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<StepChannel> channel_;
};

KernelSet kernel_set(const std::string& name) {
  if (name == "cpu") return KernelSet::cpu;
  if (name == "hopper") return KernelSet::hopper;
  if (name == "reference") return KernelSet::reference;
  if (name == "avx2") return KernelSet::avx2;
  if (name == "avx512") return KernelSet::avx512;
  return KernelSet::automatic;
}

Precision precision(const std::string& name) { return name == "float32" ? Precision::float32 : name == "fp8" ? Precision::fp8 : Precision::stored; }

// load(options, onStep): Promise<NativeEngine>
Napi::Value load(const Napi::CallbackInfo& call) {
  const Napi::Object given = call[0].As<Napi::Object>();
  EngineOptions options;
  options.path = string(given, "path");
  options.threads = static_cast<int>(number(given, "threads", 0));
  options.context_tokens = static_cast<int>(number(given, "contextTokens", 0));
  options.kv_memory_bytes = static_cast<uint64_t>(number(given, "kvMemoryBytes", 0));
  options.slots = static_cast<int>(number(given, "slots", options.slots));
  options.kernels = kernel_set(string(given, "kernels"));
  options.precision = precision(string(given, "precision"));
  options.kv_type = string(given, "kvType") == "q8" ? KvType::q8 : KvType::f16;
  options.deterministic = boolean(given, "deterministic", false);
  options.prefix_cache = boolean(given, "prefixCache", true);

  const auto channel = StepChannel::open(call.Env(), call[1].As<Napi::Function>());
  return Work<std::shared_ptr<Engine>>::start(
      call.Env(),
      [options, channel]() -> Result<std::shared_ptr<Engine>> {
        auto engine = Engine::load(options, [channel](std::span<const Event> events) { channel->deliver(events); });
        if (!engine.ok()) return engine.status();
        return std::shared_ptr<Engine>(engine.take());
      },
      [channel](Napi::Env env, std::shared_ptr<Engine> engine) -> Napi::Value {
        const Napi::Object object = env.GetInstanceData<Napi::FunctionReference>()->New({});
        NativeEngine::Unwrap(object)->hold(std::move(engine), channel);
        return object;
      },
      [channel] { channel->close(); });
}

// readVocabulary(path): Promise<Vocabulary>. Weights are mapped at most, never read.
Napi::Value read_vocabulary_of(const Napi::CallbackInfo& call) {
  return Work<Vocabulary>::start(
      call.Env(),
      [path = call[0].As<Napi::String>().Utf8Value()]() -> Result<Vocabulary> {
        auto file = open_model(path);
        if (!file.ok()) return file.status();
        return read_vocabulary(*file.value());
      },
      [](Napi::Env env, Vocabulary vocabulary) { return object_of(env, vocabulary); });
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto* constructor = new Napi::FunctionReference(Napi::Persistent(NativeEngine::define(env)));
  env.SetInstanceData(constructor);
  exports.Set("load", Napi::Function::New(env, load));
  exports.Set("readVocabulary", Napi::Function::New(env, read_vocabulary_of));
  return exports;
}

NODE_API_MODULE(millrace, initialize)

}  // namespace
}  // namespace millrace
