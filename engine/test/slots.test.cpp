// Slots and the prefix cache: what a sequence finds, what it costs, and, through random histories, that nobody sees another's tokens.
#include "kv/slots.h"

#include <algorithm>
#include <set>
#include <thread>

#include "support/random.h"
#include "support/test.h"
#include "support/written_slots.h"

using namespace millrace;
using test::Tokens;
using test::WrittenSlots;

namespace {

// One layer: pages of 32 tokens.
const std::vector<int> one_layer = {0};
constexpr int page_tokens = 32;
// So large that what is drawn twice is never the same by chance.
constexpr int vocabulary = 1 << 30;

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Tokens first(const Tokens& tokens, int count) { return {tokens.begin(), tokens.begin() + count}; }

// Runs a sequence from its start to its end; returns its slot.
int run(WrittenSlots& slots, const Tokens& tokens) {
  const Taken taken = slots.start(tokens, static_cast<int>(tokens.size()));
  slots.compute(taken.slot, {tokens.begin() + taken.cached, tokens.end()});
  slots.end(taken.slot);
  return taken.slot;
}

}  // namespace

TEST("the next turn adopts its predecessor's slot without a mapping call, and maps only what it adds") {
  test::Random random;
  WrittenSlots slots(one_layer, 4, 40, 400, 400);
  Tokens conversation = random.tokens(75, vocabulary);
  const int slot = run(slots, conversation);
  for (int turn = 0; turn < 3; turn++) {
    const int before = static_cast<int>(conversation.size()), calls = slots.calls.load();
    conversation = conversation + random.tokens(random.between(2, 60), vocabulary);
    const Taken taken = slots.start(conversation, static_cast<int>(conversation.size()));
    CHECK_EQUAL(taken.slot, slot);
    CHECK_EQUAL(taken.cached, before);
    CHECK_EQUAL(slots.calls, calls);
    slots.compute(slot, {conversation.begin() + before, conversation.end()});
    CHECK_EQUAL(slots.calls, calls + (static_cast<int>(conversation.size()) + 31) / 32 - (before + 31) / 32);
    slots.end(slot);
  }
}

TEST("where changes are slow, a prefix that many begin with is soon mapped by nobody, and who was here of late still finds all") {
  test::Random random;
  WrittenSlots slots(one_layer, 64, 4000, 1400, 1400, true, true);
  const Tokens prefix = random.tokens(40 * page_tokens, vocabulary);
  std::set<int> used;
  int calls = 0;
  for (int i = 0; i < 100; i++) {
    calls = slots.calls;
    used.insert(run(slots, prefix + random.tokens(60, vocabulary)));
    if (i == 60) used.clear();
    CHECK(i <= 60 || slots.calls == calls, slots.calls - calls, " calls for sequence ", i);
  }
  CHECK(used.size() > 10, "only ", used.size(), " slots were used in turn");
  const Tokens conversation = prefix + random.tokens(60, vocabulary);
  run(slots, conversation);
  for (int i = 0; i < 3; i++) run(slots, prefix + random.tokens(60, vocabulary));
  CHECK_EQUAL(slots.start(conversation + random.tokens(5, vocabulary), 1400).cached, static_cast<int>(conversation.size()));
}

TEST("where changes are slow and every slot holds something, the oldest that begins alike is used on, however long it is") {
  test::Random random;
  WrittenSlots slots(one_layer, 8, 1000, 400, 400, true, true);
  const Tokens prefix = random.tokens(3 * page_tokens, vocabulary);
  const auto begins_alike = [&] { return prefix + random.tokens(random.between(150, 300), vocabulary); };
  for (int i = 0; i < 8; i++) run(slots, begins_alike());
  for (int i = 0; i < 20; i++) {
    const Tokens tokens = begins_alike();
    const int calls = slots.calls;
    const Taken taken = slots.start(tokens, 400);
    CHECK_EQUAL(taken.cached, static_cast<int>(prefix.size()));
    CHECK(slots.calls <= calls + 1, slots.calls - calls, " calls to begin sequence ", i);  // what it has no use for goes at once
    slots.compute(taken.slot, {tokens.begin() + taken.cached, tokens.end()});
    slots.end(taken.slot);
  }
}

// The reader stopped the answer, or the template writes its end otherwise.
TEST("a turn that differs in the last tokens adopts the slot too, and one that differs earlier leaves it") {
  test::Random random;
  WrittenSlots slots(one_layer, 4, 40, 400, 400);
  const Tokens turn = random.tokens(110, vocabulary);
  const int slot = run(slots, turn);
  const Tokens other = first(turn, 100) + random.tokens(50, vocabulary);
  const int calls = slots.calls.load();
  const Taken taken = slots.start(other, 150);
  CHECK(taken.slot == slot && taken.cached == 100 && slots.calls == calls);
  slots.compute(slot, {other.begin() + 100, other.end()});
  slots.end(slot);
  const Taken branched = slots.start(first(turn, 70) + random.tokens(50, vocabulary), 120);
  CHECK(branched.slot != slot);
  CHECK_EQUAL(branched.cached, 70);
  CHECK_EQUAL(slots.slots().held(slot), 150);
}

TEST("full pages are shared, with whoever is idle or runs, and the rest of a page is copied") {
  test::Random random;
  for (const bool is_running : {false, true}) {
    WrittenSlots slots(one_layer, 4, 40, 400, 400);
    const Tokens prompt = random.tokens(100, vocabulary);
    const Taken holder = slots.start(prompt + random.tokens(80, vocabulary), 400);
    slots.compute(holder.slot, prompt + random.tokens(80, vocabulary));
    if (!is_running) slots.end(holder.slot);
    const int mapped = slots.slots().pages_mapped();
    const Taken taken = slots.start(prompt + random.tokens(50, vocabulary), 150);
    CHECK(taken.slot != holder.slot);
    CHECK_EQUAL(taken.cached, 100);
    CHECK_EQUAL(slots.slots().pages_mapped(), mapped + 1);  // three are shared
    slots.compute(taken.slot, random.tokens(50, vocabulary));
    if (is_running) slots.compute(holder.slot, random.tokens(50, vocabulary));
    slots.check(holder.slot);
    slots.check(taken.slot);
    slots.end(taken.slot);
    if (is_running) slots.end(holder.slot);
    slots.check_idle(holder.slot);
  }
}

// A sequence rolls back into a page that another shares: adopting does it, and growing must copy.
TEST("what several found is promised once, for as long as any of them runs") {
  test::Random random;
  WrittenSlots slots(one_layer, 8, 14, 320, 320);
  const Tokens prefix = random.tokens(4 * page_tokens + 5, vocabulary);
  // The first is promised all of its 6 pages; each of the others two, of which one is the copy of what is not a full page of the prefix.
  std::vector<int> running = {slots.start(prefix, 6 * page_tokens).slot};
  slots.compute(running[0], prefix);
  for (int pages = 8; pages <= 14; pages += 2) {
    running.push_back(slots.start(prefix + random.tokens(20, vocabulary), 6 * page_tokens).slot);
    CHECK_EQUAL(slots.slots().pages_promised(), pages);
  }
  CHECK_EQUAL(slots.slots().pages_shared(), 16);
  for (const int slot : running)
    while (static_cast<int>(slots.tokens(slot).size()) < 6 * page_tokens) slots.compute(slot, random.tokens(1, vocabulary));
  CHECK_EQUAL(slots.slots().pages_mapped(), 14);
  // Whoever goes, what the others found stays theirs.
  for (int pages = 14; !running.empty(); running.erase(running.begin())) {
    slots.end(running.front());
    pages -= running.size() > 1 ? 2 : 6;
    CHECK_EQUAL(slots.slots().pages_promised(), pages);
  }
}

TEST("rolling back into a shared page copies it first") {
  test::Random random;
  WrittenSlots slots(one_layer, 4, 40, 400, 400);
  const Tokens prompt = random.tokens(64, vocabulary);
  const int slot = run(slots, prompt);
  const Tokens longer = prompt + random.tokens(30, vocabulary);
  const Taken holder = slots.start(prompt + prompt, 128);  // adopts, so that the next one must share
  REQUIRE(holder.slot == slot && holder.cached == 64);
  const Taken sharer = slots.start(longer, 94);
  REQUIRE(sharer.slot != slot && sharer.cached == 64);
  slots.end(holder.slot);
  const Taken back = slots.start(first(prompt, 50) + random.tokens(40, vocabulary), 90);
  CHECK(back.slot == slot && back.cached == 50);
  slots.compute(slot, random.tokens(40, vocabulary));
  slots.check(sharer.slot);
}

TEST("matches of less than a tile are not worth a copy, and the last token is always computed") {
  test::Random random;
  WrittenSlots slots(one_layer, 4, 40, 400, 400);
  const Tokens prompt = random.tokens(80, vocabulary);
  const int slot = run(slots, prompt);
  CHECK_EQUAL(slots.start(first(prompt, 15) + random.tokens(50, vocabulary), 65).cached, 0);
  CHECK_EQUAL(slots.start(first(prompt, 40), 40).cached, 39);
  const Taken same = slots.start(prompt, 80);
  CHECK(same.slot == slot && same.cached == 79);
}

TEST("without the cache nothing is found, and a slot keeps its pages for the next sequence") {
  test::Random random;
  WrittenSlots slots(one_layer, 3, 12, 128, 128, false);
  const Tokens prompt = random.tokens(100, vocabulary);
  const int slot = run(slots, prompt), calls = slots.calls.load();
  const Taken taken = slots.start(prompt, 100);
  CHECK(taken.slot == slot && taken.cached == 0);
  slots.compute(slot, prompt);
  CHECK_EQUAL(slots.calls, calls);
  CHECK(slots.take(prompt, 1).slot >= 0 && slots.take(prompt, 1).slot >= 0);
  CHECK_EQUAL(slots.take(prompt, 1).slot, -1);
}

TEST("what was mapped ahead is there when it is needed, without a call, and is given up for what others need now") {
  WrittenSlots slots({0}, 2, 6, 400, 64, true, true);
  test::Random random;
  const int slot = slots.start(random.tokens(20, 50), 300).slot;
  slots.compute(slot, random.tokens(20, 50));
  CHECK_EQUAL(slots.slots().pages_mapped(), 1);
  slots.prepare(slot, 2 * page_tokens);
  CHECK_EQUAL(slots.slots().pages_mapped(), 3);
  slots.compute(slot, random.tokens(40, 50));
  slots.compute(slot, random.tokens(30, 50));
  CHECK_EQUAL(slots.calls.load(), 3);
  // Never more than there is,
  slots.prepare(slot, 300);
  CHECK_EQUAL(slots.slots().pages_mapped(), 6);
  // and another's need comes first.
  const int other = slots.start(random.tokens(10, 50), 3 * page_tokens).slot;
  slots.compute(other, random.tokens(3 * page_tokens, 50));
  CHECK_EQUAL(slots.slots().pages_mapped(), 6);
  slots.check(slot);
}

TEST("where pages are mapped ahead, what a sequence left unused goes when it ends, and what the next one has no use for when that begins") {
  WrittenSlots slots(one_layer, 2, 100, 800, 800, true, true);
  test::Random random;
  const Tokens prompt = random.tokens(2 * page_tokens, 50);
  const auto mapped = [&] { return slots.slots().pages_mapped(); };
  const int slot = slots.start(prompt + random.tokens(10, 50), 800).slot;
  slots.compute(slot, prompt + random.tokens(8 * page_tokens, 50));
  slots.prepare(slot, 3 * page_tokens);
  CHECK_EQUAL(mapped(), 13);
  while (slots.calls < mapped()) std::this_thread::yield();
  int calls = slots.calls;
  slots.end(slot);
  CHECK_EQUAL(mapped(), 10);
  REQUIRE(slots.start(random.tokens(2, 50), 20).slot >= 0);  // the other one
  // All slots hold something: the one that begins alike is used on, with as much as the prompt needs.
  const Taken taken = slots.start(prompt + random.tokens(page_tokens, 50), 200);
  CHECK(taken.slot == slot && taken.cached == static_cast<int>(prompt.size()), taken.slot, " has ", taken.cached, " cached");
  CHECK_EQUAL(mapped(), 3);
  REQUIRE(slots.slots().await().ok());
  calls = slots.calls - calls;
  CHECK(calls <= 2, calls, " calls to give up 10 pages");
}

TEST("where there are fewer pages than was thought, what is cached makes room") {
  WrittenSlots slots(one_layer, 4, 40, 400, 400);
  test::Random random;
  slots.made_max = 6;
  const int cached = run(slots, random.tokens(5 * page_tokens, vocabulary));
  run(slots, random.tokens(5 * page_tokens, vocabulary));
  CHECK_EQUAL(slots.slots().pages_max(), 6);
  CHECK(slots.slots().pages_mapped() == 6 && slots.slots().held(cached) == page_tokens, slots.slots().held(cached), " tokens are left");
  slots.check_idle(cached);
}

TEST("what pages hold counts each token once, however many share its page, and no page's empty end") {
  WrittenSlots slots(one_layer, 4, 40, 400, 400);
  test::Random random;
  const Tokens prompt = random.tokens(4 * page_tokens + 5, vocabulary);
  const int slot = run(slots, prompt);
  const uint64_t token_bytes = static_cast<uint64_t>(slots.plan().groups[0].token_bytes());
  CHECK_EQUAL(slots.slots().bytes_held(), prompt.size() * token_bytes);
  // Another shares the full pages and has a copy of the third.
  const Taken other = slots.start(first(prompt, 2 * page_tokens + 20) + random.tokens(20, vocabulary), 110);
  CHECK(other.slot != slot && other.cached == 2 * page_tokens + 20);
  CHECK_EQUAL(slots.slots().bytes_held(), (prompt.size() + 20) * token_bytes);
}

TEST("what nobody used for longest goes first, from its end") {
  test::Random random;
  WrittenSlots slots(one_layer, 5, 9, 400, 400);
  const Tokens a = random.tokens(96, vocabulary), b = random.tokens(96, vocabulary), c = random.tokens(96, vocabulary);
  const int slot_a = run(slots, a), slot_b = run(slots, b), slot_c = run(slots, c);
  CHECK_EQUAL(slots.slots().pages_mapped(), 9);
  CHECK_EQUAL(slots.start(a, 96).slot, slot_a);  // a was used since
  const Taken fourth = slots.start(random.tokens(64, vocabulary), 64);
  slots.compute(fourth.slot, random.tokens(64, vocabulary));
  CHECK_EQUAL(slots.slots().held(slot_b), 32);
  CHECK_EQUAL(slots.slots().held(slot_c), 96);
  slots.check_idle(slot_b);
  CHECK_EQUAL(slots.slots().counts().evicted_tokens, uint64_t{65});  // and a's last, which is computed anew
}

TEST("a window's pages go back while the sequence runs, and none is held that it will not see") {
  test::Random random;
  WrittenSlots slots({0, 64, 64, 64}, 3, 400, 4000, 32);
  const Taken taken = slots.start(random.tokens(1, vocabulary), 3000);
  const KvLayout &all = slots.plan().groups[0], &windowed = slots.plan().groups[1];
  for (int done = 0; done < 3000;) {
    const int count = std::min(random.between(1, 32), 3000 - done);
    slots.compute(taken.slot, random.tokens(count, vocabulary));
    done += count;
    CHECK(slots.slots().pages_mapped() <= slots.need.of(done), slots.slots().pages_mapped(), " pages for ", done, " tokens");
  }
  CHECK(slots.slots().pages_mapped() <= all.pages_for(3000) + (64 + 16 + 32) / windowed.page_tokens + 2, slots.slots().pages_mapped());
}

TEST("a window serves the prefix that it still covers, and no other") {
  test::Random random;
  WrittenSlots slots({0, 64}, 4, 400, 2000, 2000);
  const Tokens turn = random.tokens(1000, vocabulary);
  const Taken taken = slots.start(turn, vocabulary);
  for (int done = 0; done < 1000; done += 50) slots.compute(taken.slot, {turn.begin() + done, turn.begin() + done + 50});
  slots.end(taken.slot);
  CHECK_EQUAL(slots.take(first(turn, 500) + random.tokens(50, vocabulary), 550).cached, 0);
  const Tokens next = first(turn, 995) + random.tokens(50, vocabulary);
  const Taken adopted = slots.start(next, 1045);
  CHECK(adopted.slot == taken.slot && adopted.cached == 995);
  slots.compute(adopted.slot, random.tokens(50, vocabulary));
  // From one that runs, and has given back what it will not see again.
  CHECK_EQUAL(slots.take(first(turn, 930) + random.tokens(50, vocabulary), 980).cached, 0);
  const Taken shared = slots.start(first(turn, 990) + random.tokens(10, vocabulary), vocabulary);
  CHECK_EQUAL(shared.cached, 990);
  slots.compute(shared.slot, random.tokens(10, vocabulary));
}

TEST("a window whose only page is reclaimed holds nothing any more") {
  test::Random random;
  WrittenSlots slots({4}, 6, 3, 400, 8);
  for (int round = 0; round < 20; round++) {
    const Tokens tokens = random.tokens(70, vocabulary);
    const Taken taken = slots.start(tokens, 70);
    for (int done = 0; done < 70; done += 7) slots.compute(taken.slot, {tokens.begin() + done, tokens.begin() + done + 7});
    slots.end(taken.slot);
    for (int slot = 0; slot < slots.slot_count(); slot++) slots.check_idle(slot);
  }
  CHECK(slots.slots().counts().evicted_tokens > 0);
}

// Against a model in plain containers (support/written_slots.h): promises are kept whatever the cache holds, and all pages come back.
TEST("random histories mix up nobody's tokens, keep every promise, and lose no page") {
  test::Random random;
  uint64_t hits = 0, evicted = 0, beyond = 0;
  for (int round = 0; round < 150; round++) {
    const std::vector<std::vector<int>> kinds = {{0}, {0}, {48}, {0, 40, 40}, {24, 100, 0, 100}};
    const std::vector<int>& windows = kinds[static_cast<size_t>(random.between(0, 4))];
    constexpr int tokens_max = 300, step_max = 40;
    const int running_max = random.between(1, 10), slot_count = running_max + random.between(1, 8), pages_max = random.between(24, 70);
    const bool maps_ahead = random.chance(0.5);
    WrittenSlots slots(windows, slot_count, pages_max, tokens_max, step_max, random.chance(0.9), maps_ahead);
    const int alphabet = random.between(1, 4);
    struct Running {
      int slot, tokens_max;
      Tokens prompt;
    };
    std::vector<Running> running;
    std::vector<Tokens> past = {random.tokens(160, alphabet)};
    const auto end = [&](size_t at) {
      past.push_back(slots.tokens(running[at].slot));
      slots.end(running[at].slot);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(at));
    };
    for (int step = 0; step < 120; step++) {
      const size_t before = running.size();
      while (random.chance(0.4) && static_cast<int>(running.size()) < running_max) {
        const Tokens& old = past[random.chance(0.3) ? 0 : static_cast<size_t>(random.between(0, static_cast<int>(past.size()) - 1))];
        Tokens prompt = first(old, random.chance(0.5) ? static_cast<int>(old.size()) : random.between(0, static_cast<int>(old.size())));
        prompt = prompt + random.tokens(random.between(1, 60), alphabet);
        prompt.resize(std::min<size_t>(prompt.size(), tokens_max));
        const int most = random.between(static_cast<int>(prompt.size()), tokens_max);
        if (slots.slots().pages_promised() + slots.need.of(most) > pages_max) break;
        const Taken taken = slots.take(prompt, most);
        if (taken.slot < 0) {
          REQUIRE(running.size() > before, "no slot, and nothing that is about to free one");
          break;
        }
        for (const Running& other : running) REQUIRE(other.slot != taken.slot);
        running.push_back({taken.slot, most, prompt});
      }
      for (size_t i = before; i < running.size(); i++) slots.open(running[i].slot);
      for (size_t i = 0; i < running.size();) {
        const Running& each = running[i];
        const int done = static_cast<int>(slots.tokens(each.slot).size()), prompt = static_cast<int>(each.prompt.size());
        const int count = std::min(random.between(1, step_max), (done < prompt ? prompt : each.tokens_max) - done);
        if (count > 0) slots.compute(each.slot, done < prompt ? Tokens{each.prompt.begin() + done, each.prompt.begin() + done + count} : random.tokens(count, alphabet));
        if (maps_ahead && random.chance(0.3)) slots.prepare(each.slot, std::min(random.between(1, 64), tokens_max - done - count));
        if (count == 0 || random.chance(0.05))
          end(i);
        else
          i++;
      }
      REQUIRE(slots.slots().pages_mapped() <= pages_max);
      beyond += slots.slots().pages_promised() + slots.slots().pages_shared() > pages_max;
      for (int slot = 0; slot < slot_count; slot++)
        if (std::none_of(running.begin(), running.end(), [&](const Running& each) { return each.slot == slot; })) slots.check_idle(slot);
    }
    while (!running.empty()) end(0);
    REQUIRE(slots.slots().pages_promised() == 0 && slots.slots().pages_shared() == 0);
    hits += slots.slots().counts().hits;
    evicted += slots.slots().counts().evicted_tokens;
    // Everything at once, to the last page.
    const int most = std::min(tokens_max, page_tokens * 2);
    while (slots.slots().pages_promised() + slots.need.of(most) <= pages_max && static_cast<int>(running.size()) < slot_count)
      running.push_back({slots.start({1000 + static_cast<int32_t>(running.size())}, most).slot, most, {}});
    for (const Running& each : running)
      for (int done = 0; done < most; done += 32) slots.compute(each.slot, random.tokens(std::min(32, most - done), 2000));
  }
  CHECK(hits > 500 && evicted > 5000 && beyond > 50, hits, " hits, ", evicted, " tokens evicted, ", beyond, " steps had more promised than there is, but for what is shared");
}
