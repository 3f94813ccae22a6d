#include "fairness.h"

#include <algorithm>
#include <cassert>
#include <cmath>

namespace millrace {
namespace {

constexpr double fading_us = 10e6;
constexpr int64_t fade_every_us = 500'000;
constexpr double work_us_forgotten = 1;  // an account below this is closed
constexpr double over_by = 1.1;
constexpr std::array<double, service_classes> class_shares = {8, 4, 1};

}  // namespace

void Shares::charge(const Submission& submission, double work_us, int64_t now_us) {
  if (now_us - faded_us_ >= fade_every_us) fade(now_us);
  Accounts& accounts = classes_[static_cast<int>(submission.service)];
  const auto [found, is_new] = accounts.tenants.try_emplace(submission.tenant);
  Account& account = found->second;
  accounts.weight += submission.weight - (is_new ? 0 : account.weight);
  account.weight = submission.weight;
  account.work_us += work_us;
  accounts.work_us += work_us;
}

bool Shares::is_over(const Submission& submission) const {
  const Accounts& accounts = classes_[static_cast<int>(submission.service)];
  const auto found = accounts.tenants.find(submission.tenant);
  if (found == accounts.tenants.end() || accounts.tenants.size() == 1) return false;
  return found->second.work_us * accounts.weight > over_by * accounts.work_us * found->second.weight;
}

void Shares::fade(int64_t now_us) {
  const double kept = std::exp(-static_cast<double>(now_us - faded_us_) / fading_us);
  faded_us_ = now_us;
  for (Accounts& accounts : classes_) {
    accounts.work_us = accounts.weight = 0;
    for (auto each = accounts.tenants.begin(); each != accounts.tenants.end();) {
      each->second.work_us *= kept;
      if (each->second.work_us < work_us_forgotten) {
        each = accounts.tenants.erase(each);
        continue;
      }
      accounts.work_us += each->second.work_us;
      accounts.weight += each->second.weight;
      ++each;
    }
  }
}

void FairQueue::push(int index, const Submission& submission, double work_us) {
  const int which = static_cast<int>(submission.service);
  Line& line = lines_[which];
  if (line.places.empty()) {
    // Who was away saved nothing up: the class joins where the others stand, and old tags mean nothing any more.
    const int other = next_line();
    if (other >= 0) line.served = std::max(line.served, lines_[other].served);
    line.tags.clear();
  }
  const auto [found, is_new] = line.tags.try_emplace(submission.tenant, line.now);
  const double tag = std::max(line.now, found->second);
  found->second = tag + work_us / submission.weight;
  const Place place{tag, arrivals_++, index};
  line.places.insert(place);
  entries_.emplace(index, Entry{place, work_us, which});
  work_us_ += work_us;
}

int FairQueue::next_line() const {
  int best = -1;
  for (int line = 0; line < service_classes; line++)
    if (!lines_[line].places.empty() && (best < 0 || lines_[line].served < lines_[best].served)) best = line;
  return best;
}

int FairQueue::front() const {
  const int line = next_line();
  return line < 0 ? -1 : std::get<2>(*lines_[line].places.begin());
}

void FairQueue::pop() {
  const int index = front();
  assert(index >= 0);
  const Entry entry = entries_.at(index);
  Line& line = lines_[entry.line];
  line.now = std::get<0>(entry.place);
  line.served += entry.work_us / class_shares[entry.line];
  take_out(index, entry);
}

void FairQueue::erase(int index) {
  const Entry entry = entries_.at(index);
  take_out(index, entry);
}

void FairQueue::take_out(int index, const Entry& entry) {
  Line& line = lines_[entry.line];
  line.places.erase(entry.place);
  // Accounts that stand behind the line's own are as good as none.
  if (line.tags.size() > 2 * line.places.size() + 16) std::erase_if(line.tags, [&](const auto& each) { return each.second <= line.now; });
  work_us_ = entries_.size() == 1 ? 0 : work_us_ - entry.work_us;
  entries_.erase(index);
}

}  // namespace millrace
