// What takes longer than the event loop may wait.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>

#include "status.h"

namespace millrace {

// Runs `task` on a libuv thread, then settles the promise with what `convert` makes of its result, or calls `failed` and rejects it.
template <typename Value>
class Work final : public Napi::AsyncWorker {
 public:
  using Task = std::function<Result<Value>()>;
  using Convert = std::function<Napi::Value(Napi::Env, Value)>;
  using Failed = std::function<void()>;

  static Napi::Promise start(Napi::Env env, Task task, Convert convert, Failed failed = [] {}) {
    Work* work = new Work(env, std::move(task), std::move(convert), std::move(failed));
    work->Queue();
    return work->deferred_.Promise();
  }

 private:
  Work(Napi::Env env, Task task, Convert convert, Failed failed)
      : Napi::AsyncWorker(env, "millrace"), deferred_(Napi::Promise::Deferred::New(env)), task_(std::move(task)), convert_(std::move(convert)),
        failed_(std::move(failed)) {}

  void Execute() override {
    try {
      result_ = std::make_unique<Result<Value>>(task_());
      if (!result_->ok()) SetError(result_->message());
    } catch (const std::bad_alloc&) {
      SetError("not enough memory");
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }
  void OnOK() override { deferred_.Resolve(convert_(Env(), result_->take())); }
  void OnError(const Napi::Error& error) override {
    failed_();
    deferred_.Reject(error.Value());
  }

  Napi::Promise::Deferred deferred_;
  Task task_;
  Convert convert_;
  Failed failed_;
  std::unique_ptr<Result<Value>> result_;
};

}  // namespace millrace
