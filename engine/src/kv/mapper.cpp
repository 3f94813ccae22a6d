#include "mapper.h"

namespace millrace {

Status make_change(KvPages& pages, const KvChange& change) {
  switch (change.kind) {
    case KvChange::Kind::attach: return pages.attach(change.place, change.page, change.is_writable);
    case KvChange::Kind::protect: return pages.protect(change.place, change.is_writable);
    case KvChange::Kind::copy: return pages.copy(change.page, change.place);
    case KvChange::Kind::detach: pages.detach(change.place, change.count);
  }
  return Status();
}

KvMapper::KvMapper(KvPages& pages) : pages_(pages) {
  thread_ = std::thread([this] {
    for (std::unique_lock lock(mutex_);;) {
      wake_.wait(lock, [this] { return is_ending_ || !queue_.empty(); });
      if (queue_.empty()) return;
      lock.unlock();
      while (make_next()) {
      }
      lock.lock();
    }
  });
}

KvMapper::~KvMapper() {
  start();
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

uint64_t KvMapper::add(const KvChange& change) {
  gathered_.push_back(change);
  return ++added_;
}

void KvMapper::start() {
  if (gathered_.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    queue_.insert(queue_.end(), gathered_.begin(), gathered_.end());
  }
  gathered_.clear();
  wake_.notify_one();
}

void KvMapper::await(uint64_t number) {
  if (made_ < number) start();
  // Makes them itself rather than wait for the thread to wake up.
  while (made_ < number) make_next();
}

Status KvMapper::status_of(int64_t place) {
  const std::lock_guard lock(mutex_);
  const auto found = failed_.find(place);
  return found == failed_.end() ? Status() : found->second;
}

bool KvMapper::make_next() {
  const std::lock_guard turn(making_);
  KvChange change;
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) return false;
    change = queue_.front();
    queue_.pop_front();
  }
  Status status = make_change(pages_, change);
  {
    const std::lock_guard lock(mutex_);
    // Bytes that could not be copied are as missing as a page is.
    const int64_t place = change.kind == KvChange::Kind::copy ? change.copied_to : change.place;
    if (!status.ok())
      failed_.insert_or_assign(place, std::move(status));
    else if (change.kind == KvChange::Kind::detach)
      failed_.erase(failed_.lower_bound(place), failed_.lower_bound(place + change.count));
  }
  made_++;
  return true;
}

}  // namespace millrace
