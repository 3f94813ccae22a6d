#include "memory.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace millrace {

KvMemory::KvMemory(std::unique_ptr<KvPages> pages, const Shape& shape, bool maps_ahead)
    : shape_(shape), pages_max_(shape.pages_max), pages_(std::move(pages)), places_(static_cast<size_t>(shape.places())), mapper_(maps_ahead ? std::make_unique<KvMapper>(*pages_) : nullptr) {}

Status KvMemory::map_ahead(int range, int page) {
  assert(at(range, page).page == none);
  if (Status status = find_free(); !status.ok()) return status;
  return attach(range, page, free_.back(), true);
}

Status KvMemory::map(int range, int page) {
  Status status = map_ahead(range, page);
  need(range, page);
  return status;
}

Status KvMemory::alias(int range, int page, int from_range, int from_page) {
  assert(at(range, page).page == none && at(from_range, from_page).page != none);
  if (Status status = protect(from_range, from_page, false); !status.ok()) return status;
  Status status = attach(range, page, at(from_range, from_page).page, false);
  need(range, page);
  return status;
}

Status KvMemory::copy(int range, int page, int from_range, int from_page) {
  assert(at(range, page).page == none && at(from_range, from_page).page != none);
  if (Status status = find_free(); !status.ok()) return status;
  if (Status status = change(at(range, page), {.kind = KvChange::Kind::copy, .place = place_of(from_range, from_page), .copied_to = place_of(range, page), .page = free_.back()}); !status.ok()) return status;
  Status status = attach(range, page, free_.back(), true);
  need(range, page);
  return status;
}

Status KvMemory::own(int range, int page) {
  Place& place = at(range, page);
  assert(place.page != none);
  Status status;
  if (is_shared(range, page)) {
    if (status = find_free(); !status.ok()) return status;
    status = change(place, {.kind = KvChange::Kind::copy, .place = place_of(range, page), .copied_to = place_of(range, page), .page = free_.back()});
    if (status.ok()) status = attach(range, page, free_.back(), true);
  } else {
    status = protect(range, page, true);
  }
  need(range, page);
  return status;
}

void KvMemory::unmap(int range, int page, int count) {
  (void)change(at(range, page), {.kind = KvChange::Kind::detach, .place = place_of(range, page), .count = count});
  for (int i = 0; i < count; i++) {
    Place& place = at(range, page + i);
    assert(place.page != none);
    if (--users_[static_cast<size_t>(place.page)] == 0) free_.push_back(place.page);
    place.page = none;
  }
  places_mapped_ -= count;
}

void KvMemory::start() {
  if (mapper_) mapper_->start();
}

void KvMemory::need(int range, int page) {
  if (!mapper_) return;
  needed_.push_back(place_of(range, page));
  needed_changes_ = std::max(needed_changes_, at(range, page).change);
}

Status KvMemory::await() {
  if (!mapper_) return Status();
  mapper_->await(needed_changes_);
  Status status;
  for (const int64_t place : std::exchange(needed_, {}))
    if (status.ok()) status = mapper_->status_of(place);
  return status;
}

// Sees to it that free_ ends with a physical page.
Status KvMemory::find_free() {
  if (!free_.empty()) return Status();
  const auto created = static_cast<int>(users_.size());
  if (created >= pages_max_) return Status::error("no KV page is free");
  if (Status status = pages_->create(created); !status.ok()) {
    pages_max_ = created;
    return status;
  }
  free_.push_back(created);
  users_.push_back(0);
  return Status();
}

Status KvMemory::change(Place& of, const KvChange& change) {
  if (!mapper_) return make_change(*pages_, change);
  of.change = mapper_->add(change);
  return Status();
}

// Puts a physical page, the last of free_ or one that is in use, where another or none was.
Status KvMemory::attach(int range, int page, int physical, bool is_writable) {
  Place& place = at(range, page);
  if (Status status = change(place, {.place = place_of(range, page), .page = physical, .is_writable = is_writable}); !status.ok()) return status;
  if (users_[static_cast<size_t>(physical)]++ == 0) free_.pop_back();
  if (place.page == none)
    places_mapped_++;
  else
    users_[static_cast<size_t>(place.page)]--;  // it is shared
  place.page = physical;
  place.is_writable = is_writable;
  return Status();
}

Status KvMemory::protect(int range, int page, bool is_writable) {
  Place& place = at(range, page);
  if (place.is_writable == is_writable) return Status();
  if (Status status = change(place, {.kind = KvChange::Kind::protect, .place = place_of(range, page), .is_writable = is_writable}); !status.ok()) return status;
  place.is_writable = is_writable;
  return Status();
}

Result<std::unique_ptr<KvMemory>> reserve_kv_memory(const KvMemory::Shape& shape, int64_t page_bytes, bool maps_ahead) {
  auto pages = reserve_mmap_pages(shape.places(), page_bytes);
  if (!pages.ok()) return pages.status();
  return std::make_unique<KvMemory>(pages.take(), shape, maps_ahead);
}

}  // namespace millrace
