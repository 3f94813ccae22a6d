// Weighted fairness between tenants, inside a class: who had more than its share of late (when requests are answered), and who of those
// that wait is next (start-time fair queueing: a request's tag is where its tenant's account stands, in work per weight).
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <tuple>
#include <unordered_map>

#include "classes.h"

namespace millrace {

// What tenants were given of late. Old work fades by a factor of e in 10 s.
class Shares {
 public:
  void charge(const Submission& submission, double work_us, int64_t now_us);
  // Whether this tenant had a tenth more than its weight's share of what its class gave. One alone never has.
  bool is_over(const Submission& submission) const;

 private:
  struct Account {
    double work_us = 0, weight = 1;
  };
  struct Accounts {
    std::unordered_map<uint32_t, Account> tenants;
    double work_us = 0, weight = 0;
  };
  void fade(int64_t now_us);

  std::array<Accounts, service_classes> classes_;
  int64_t faded_us_ = 0;
};

// Requests that wait, by index of the caller's. Classes share 8 : 4 : 1, so that none starves.
class FairQueue {
 public:
  void push(int index, const Submission& submission, double work_us);
  void erase(int index);
  // The next in turn; -1 where nobody waits.
  int front() const;
  // Takes the front out and charges its tenant and class.
  void pop();

  bool empty() const { return entries_.empty(); }
  int count() const { return static_cast<int>(entries_.size()); }
  double work_us() const { return work_us_; }
  // In the order in which they would be served if nobody came.
  template <typename Visit>
  void visit(const Visit& visit) const {
    for (const Line& line : lines_)
      for (const Place& place : line.places) visit(std::get<2>(place));
  }

 private:
  using Place = std::tuple<double, uint64_t, int>;  // tag, order of arrival, index
  struct Line {
    std::set<Place> places;
    std::unordered_map<uint32_t, double> tags;  // of each tenant that waits or lately did: where its next request starts
    double now = 0;                             // the tag last served
    double served = 0;                          // work over the class's share
  };
  struct Entry {
    Place place;
    double work_us;
    int line;
  };
  int next_line() const;
  void take_out(int index, const Entry& entry);

  std::array<Line, service_classes> lines_;
  std::unordered_map<int, Entry> entries_;
  uint64_t arrivals_ = 0;
  double work_us_ = 0;
};

}  // namespace millrace
