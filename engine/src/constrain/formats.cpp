#include "formats.h"

#include <algorithm>

#include "base/attempt.h"

namespace millrace {
namespace {

constexpr size_t kept_max = 64;
constexpr size_t kept_bytes_max = size_t{256} << 20;

bool is_same(const Format& a, const Format& b) { return a.kind == b.kind && a.text == b.text; }

}  // namespace

Result<std::shared_ptr<const Grammar>> Formats::compile(const Format& format) {
  if (!has_grammars()) return Status::error("this engine was built without constrained output; build it with: npm run build -- --formats");
  if (format.text.empty()) return Status::error("the format is empty");
  if (vocabulary_.stops.empty()) return Status::error("this model has no token that ends an answer, so none could end where its format does");
  if (auto found = find(format); found != nullptr) return found;
  const std::lock_guard lock(compiling_);
  if (auto found = find(format); found != nullptr) return found;  // while this one waited
  if (compiler_ == nullptr) {
    if (Status status = attempt([this] { compiler_ = make_grammar_compiler(vocabulary_, vocabulary_size_); }); !status.ok()) return status;
  }
  auto compiled = compiler_->compile(format);
  if (compiled.ok()) keep(format, compiled.value());
  return compiled;
}

std::shared_ptr<const Grammar> Formats::find(const Format& format) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& each) { return is_same(each.format, format); });
  if (found == kept_.end()) return nullptr;
  kept_.splice(kept_.begin(), kept_, found);
  return kept_.front().grammar;
}

void Formats::keep(const Format& format, const std::shared_ptr<const Grammar>& grammar) {
  const std::lock_guard lock(mutex_);
  kept_.push_front({format, grammar});
  bytes_ += grammar->bytes();
  while (kept_.size() > kept_max || (kept_.size() > 1 && bytes_ > kept_bytes_max)) {
    bytes_ -= kept_.back().grammar->bytes();
    kept_.pop_back();
  }
}

MaskThread::~MaskThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void MaskThread::begin(std::vector<Constraint*> constraints) {
  if (constraints.empty()) return;
  for (Constraint* each : constraints) each->mask().begin();
  if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
  {
    const std::lock_guard lock(mutex_);
    given_ = std::move(constraints);
    is_busy_ = true;
  }
  changed_.notify_all();
}

void MaskThread::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !is_busy_; });
}

void MaskThread::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || is_busy_; });
    if (stopping_) return;
    lock.unlock();
    for (Constraint* each : given_) each->fill();
    lock.lock();
    is_busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace millrace
