// From tokens to text: whole code points, whole tokens, nothing of a stop string, and all of it as soon as it can be known.
#include "sample/release.h"

#include <algorithm>

#include "support/random.h"
#include "support/test.h"
#include "support/utf8.h"

using namespace millrace;
using test::decode;
using test::replacement;

namespace {

bool is_whole(const std::string& text) { return decode(text) == text; }

// The text before the first stop string to be completed; of those completed together, the longest.
std::string cut(const std::string& text, const std::vector<std::string>& stops, bool& stopped) {
  size_t end = std::string::npos, begin = 0;
  for (const std::string& stop : stops) {
    const size_t found = text.find(stop);
    if (found == std::string::npos) continue;
    const size_t done = found + stop.size();
    if (done < end || (done == end && found < begin)) end = done, begin = found;
  }
  stopped = end != std::string::npos;
  return stopped ? text.substr(0, begin) : text;
}

// Pushes tokens 0, 1, 2 ... with these bytes until a stop string ends it; checks what holds at each step.
Released push_all(const std::vector<std::string>& tokens, const std::vector<std::string>& stops) {
  Releaser releaser(stops);
  Released all;
  std::string bytes;
  for (size_t i = 0; i < tokens.size() && !all.stopped; i++) {
    const Released released = releaser.push(static_cast<int32_t>(i), tokens[i]);
    CHECK(is_whole(released.text), test::show(released.text));
    CHECK(!released.ids.empty() || released.text.empty(), "text came without its token");
    all.append(released);
    bytes += tokens[i];
    // Never ahead of what is certain.
    bool stopped = false;
    const std::string certain = cut(decode(bytes), stops, stopped);
    CHECK(certain.compare(0, all.text.size(), all.text) == 0, test::show(all.text), " was released of ", test::show(certain));
  }
  if (!all.stopped) {
    const Released rest = releaser.flush();
    CHECK(is_whole(rest.text));
    all.append(rest);
  }
  return all;
}

// Where the text of each token ends: behind as many code points of the whole text as its bytes and those before them have, an unfinished one
// counted as the one that it becomes.
std::vector<uint32_t> ends_of(const std::vector<std::string>& tokens) {
  const auto is_lead = [](char byte) { return (static_cast<uint8_t>(byte) & 0xc0) != 0x80; };
  std::string bytes;
  for (const std::string& token : tokens) bytes += token;
  const std::string text = decode(bytes);
  bytes.clear();
  std::vector<uint32_t> ends;
  for (const std::string& token : tokens) {
    const std::string before = decode(bytes += token);
    auto points = std::count_if(before.begin(), before.end(), is_lead);
    size_t end = 0;
    while (points > 0 || (end < text.size() && !is_lead(text[end]))) points -= is_lead(text[end++]);
    ends.push_back(static_cast<uint32_t>(end));
  }
  return ends;
}

std::vector<std::string> split_at_random(test::Random& random, const std::string& bytes) {
  std::vector<std::string> tokens;
  for (size_t at = 0; at < bytes.size();) {
    const auto length = static_cast<size_t>(random.between(random.chance(0.1) ? 0 : 1, 5));
    tokens.push_back(bytes.substr(at, length));
    at += length;
  }
  return tokens;
}

std::string random_bytes(test::Random& random) {
  static const std::vector<std::string> pieces = {"a", "b", "ab", "\n", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xe2", "\xf0\x9f", "\xff", "\x80", "\xed\xa0\x80", "\xc0\xaf"};
  std::string bytes;
  for (int i = random.between(0, 20); i > 0; i--)
    bytes += random.chance(0.05) ? std::string(1, static_cast<char>(random.next())) : pieces[static_cast<size_t>(random.between(0, static_cast<int>(pieces.size()) - 1))];
  return bytes;
}

}  // namespace

TEST("text split at every byte comes out whole") {
  const std::string text = "na\xc3\xafve \xe2\x82\xac" "5 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80!";
  for (size_t at = 0; at <= text.size(); at++) {
    const Released all = push_all({text.substr(0, at), text.substr(at)}, {});
    CHECK_EQUAL(all.text, text);
    CHECK_EQUAL(all.ids, (std::vector<int32_t>{0, 1}));
  }
  std::vector<std::string> bytes;
  for (const char byte : text) bytes.emplace_back(1, byte);
  CHECK_EQUAL(push_all(bytes, {}).text, text);
}

TEST("a token is released with the code point that holds its last byte") {
  Releaser releaser({});
  CHECK_EQUAL(releaser.push(1, "\xf0\x9f").ids.size(), 0u);
  CHECK_EQUAL(releaser.push(2, "\x98").ids.size(), 0u);
  const Released released = releaser.push(3, "\x80 ok \xe2");
  CHECK_EQUAL(released.ids, (std::vector<int32_t>{1, 2}));
  CHECK_EQUAL(released.ends, (std::vector<uint32_t>{4, 4}));
  CHECK_EQUAL(released.text, std::string("\xf0\x9f\x98\x80"));
  const Released rest = releaser.push(4, "\x82\xac!");
  CHECK_EQUAL(rest.ids, (std::vector<int32_t>{3, 4}));
  CHECK_EQUAL(rest.ends, (std::vector<uint32_t>{7, 8}));
  CHECK_EQUAL(rest.text, std::string(" ok \xe2\x82\xac!"));
}

TEST("tokens beyond a stop string end where the text does") {
  Releaser releaser({"STOP"});
  CHECK(releaser.push(1, "ab S").ids.empty());
  CHECK(releaser.push(2, "TO").ids.empty());
  const Released released = releaser.push(3, "P cd");
  CHECK(released.stopped);
  CHECK_EQUAL(released.text, std::string("ab "));
  CHECK_EQUAL(released.ids, (std::vector<int32_t>{1, 2, 3}));
  CHECK_EQUAL(released.ends, (std::vector<uint32_t>{3, 3, 3}));
}

TEST("what was released can be taken out in parts, each with its own text") {
  Released all{.ids = {1, 2}, .ends = {1, 3}, .text = "abc"};
  all.append({.ids = {3, 4, 5}, .ends = {0, 2, 3}, .text = "def"});
  CHECK_EQUAL(all.ends, (std::vector<uint32_t>{1, 3, 3, 5, 6}));
  const Released none = all.take(0);
  CHECK(none.ids.empty() && none.text.empty());
  const Released front = all.take(2);
  CHECK_EQUAL(front.ids, (std::vector<int32_t>{1, 2}));
  CHECK_EQUAL(front.ends, (std::vector<uint32_t>{1, 3}));
  CHECK_EQUAL(front.text, std::string("abc"));
  CHECK_EQUAL(all.ends, (std::vector<uint32_t>{0, 2, 3}));
  const Released rest = all.take(9);
  CHECK_EQUAL(rest.ids, (std::vector<int32_t>{3, 4, 5}));
  CHECK_EQUAL(rest.text, std::string("def"));
  CHECK(all.ids.empty() && all.ends.empty() && all.text.empty());
}

TEST("every pair of bytes is decoded as the standard says") {
  for (int a = 0; a < 256; a++)
    for (int b = 0; b < 256; b++) {
      const std::string bytes = {static_cast<char>(a), static_cast<char>(b), 'x'};
      CHECK_EQUAL(push_all({bytes.substr(0, 1), bytes.substr(1)}, {}).text, decode(bytes));
    }
}

TEST("bytes that can begin nothing are released at once, as U+FFFD") {
  Releaser releaser({});
  CHECK_EQUAL(releaser.push(1, "\xff").text, std::string(replacement));
  CHECK_EQUAL(releaser.push(2, "\xe2").ids.size(), 0u);
  // The first lead byte can no longer become anything: its token need not wait for the second.
  const Released released = releaser.push(3, "\xe2");
  CHECK_EQUAL(released.ids, std::vector<int32_t>{2});
  CHECK_EQUAL(released.text, std::string(replacement));
}

TEST("a token that breaks off in a code point ends with its U+FFFD, before what follows") {
  Releaser releaser({"bc"});
  CHECK(releaser.push(1, "a\xe2").ids.empty());
  // The b may begin a stop string: it is held, but not the token before it.
  const Released released = releaser.push(2, "b");
  CHECK_EQUAL(released.ids, std::vector<int32_t>{1});
  CHECK_EQUAL(released.text, std::string("a") + replacement);
  CHECK_EQUAL(releaser.flush().ends, std::vector<uint32_t>{1});
}

TEST("a token without bytes is released at once, but not ahead of others") {
  Releaser releaser({});
  CHECK_EQUAL(releaser.push(1, "").ids, std::vector<int32_t>{1});
  CHECK_EQUAL(releaser.push(2, "\xc3").ids.size(), 0u);
  CHECK_EQUAL(releaser.push(3, "").ids.size(), 0u);
  CHECK_EQUAL(releaser.push(4, "\xa9").ids, (std::vector<int32_t>{2, 3, 4}));
}

TEST("a stop string that spans tokens ends the text before it") {
  const std::string text = "one two STOP three";
  for (size_t a = 0; a <= text.size(); a++)
    for (size_t b = a; b <= text.size(); b++) {
      const Released all = push_all({text.substr(0, a), text.substr(a, b - a), text.substr(b)}, {"STOP"});
      CHECK_EQUAL(all.text, std::string("one two "));
      CHECK(all.stopped);
    }
}

TEST("what may begin a stop string is held until it is known, and then all of it comes") {
  Releaser releaser({"\n\nUser:"});
  CHECK_EQUAL(releaser.push(1, "Hi\n").text, std::string());
  CHECK_EQUAL(releaser.push(2, "\nUs").text, std::string());
  const Released released = releaser.push(3, "ually");
  CHECK_EQUAL(released.text, std::string("Hi\n\nUsually"));
  CHECK_EQUAL(released.ids, (std::vector<int32_t>{1, 2, 3}));
  CHECK_EQUAL(releaser.push(4, " \n\nUser").text, std::string());
  CHECK_EQUAL(releaser.flush().text, std::string(" \n\nUser"));
}

TEST("the first stop string to be completed decides, however the text falls into tokens") {
  for (const std::vector<std::string>& tokens : {std::vector<std::string>{"xabc"}, {"x", "a", "b", "c"}, {"xa", "bc"}, {"xab", "c"}})
    CHECK_EQUAL(push_all(tokens, {"abc", "b"}).text, std::string("xa"));
  CHECK_EQUAL(push_all({"xabc"}, {"c", "abc"}).text, std::string("x"));
}

// The property of all of the above: whatever bytes, tokens and stop strings, what comes out is what one would cut from the whole.
TEST("random tokens and stop strings come out as a plain decoder and cutter would give them") {
  test::Random random;
  for (int round = 0; round < 20000; round++) {
    const std::string bytes = random_bytes(random);
    std::vector<std::string> stops;
    for (int i = random.between(0, 3); i > 0; i--) {
      static const std::vector<std::string> some = {"a", "ab", "ba", "aab", "abab", "\n", "b\n", "\xc3\xa9" "a", "\xe2\x82\xac", "a\xf0\x9f\x98\x80"};
      stops.push_back(some[static_cast<size_t>(random.between(0, static_cast<int>(some.size()) - 1))]);
    }
    const std::vector<std::string> tokens = split_at_random(random, bytes);
    bool stopped = false;
    const std::string right = cut(decode(bytes), stops, stopped);
    const Released all = push_all(tokens, stops);
    CHECK_EQUAL(all.text, right);
    if (!stopped) CHECK_EQUAL(all.ids.size(), tokens.size());
    if (!stopped) CHECK_EQUAL(all.ends, ends_of(tokens));
    CHECK(all.ends.size() == all.ids.size() && (all.ends.empty() || all.ends.back() == all.text.size()), test::show(all.ends));
    for (size_t i = 0; i < all.ids.size(); i++) CHECK_EQUAL(all.ids[i], static_cast<int32_t>(i));
  }
}

// A token is held only for a reason: unfinished bytes, or text that begins a stop string.
TEST("nothing is held longer than it must be") {
  test::Random random;
  for (int round = 0; round < 5000; round++) {
    const std::vector<std::string> tokens = split_at_random(random, random_bytes(random));
    const std::vector<std::string> stops = {"ab", "\xc3\xa9\xc3\xa9"};
    Releaser releaser(stops);
    std::string bytes;
    size_t released_tokens = 0;
    for (size_t i = 0; i < tokens.size(); i++) {
      const Released released = releaser.push(static_cast<int32_t>(i), tokens[i]);
      released_tokens += released.ids.size();
      if (released.stopped) break;
      bytes += tokens[i];
      // Unfinished bytes are those to which some byte could be added without any of them turning into U+FFFD before it.
      size_t unfinished = 0;
      for (size_t n = 1; n <= 3 && n <= bytes.size(); n++)
        for (const char* more : {"\x80", "\xa0", "\x90", "\x80\x80", "\xa0\x80", "\x90\x80", "\x90\x80\x80", "\x80\x80\x80"})
          if (const std::string tail = bytes.substr(bytes.size() - n) + more; decode(tail) == tail && tail.find(replacement) == std::string::npos &&
              (static_cast<uint8_t>(tail[0]) & 0xc0) == 0xc0 && n < tail.size() && decode(bytes.substr(bytes.size() - n)) == replacement)
            unfinished = n;
      const std::string text = decode(bytes.substr(0, bytes.size() - unfinished));
      const bool may_stop = !text.empty() && (text.back() == 'a' || (text.size() > 1 && text.compare(text.size() - 2, 2, "\xc3\xa9") == 0));
      if (unfinished == 0 && !may_stop) CHECK_EQUAL(released_tokens, i + 1);
    }
  }
}

TEST("tokens that may not stop are released at once, and no stop string reaches back into their text") {
  Releaser releaser({"ab"});
  CHECK_EQUAL(releaser.push(1, "ab", false).text, std::string("ab"));
  Released released = releaser.push(2, "ca", false);
  CHECK(released.text == "ca" && !released.stopped, released.text);
  released = releaser.push(3, "b");
  CHECK(released.text == "b" && !released.stopped, released.text);
  released = releaser.push(4, "xab");
  CHECK(released.text == "x" && released.stopped, released.text);
}

TEST("a code point that only a later token completes waits for it, whether or not it may stop") {
  Releaser releaser({"\xc3\xa9"});
  CHECK(releaser.push(1, "\xc3", false).ids.empty());
  const Released released = releaser.push(2, "\xa9");
  CHECK(released.stopped && released.text.empty(), released.text);
}
