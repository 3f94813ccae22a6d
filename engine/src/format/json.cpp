#include "json.h"

#include <algorithm>
#include <charconv>

#include "../base/text.h"

namespace millrace {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, uint32_t point) {
  if (point < 0x80) {
    out += static_cast<char>(point);
    return;
  }
  const int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  constexpr uint8_t leads[] = {0, 0xc0, 0xe0, 0xf0};
  out += static_cast<char>(leads[more] | (point >> (6 * more)));
  for (int i = more - 1; i >= 0; i--) out += static_cast<char>(0x80 | ((point >> (6 * i)) & 0x3f));
}

// Bytes of the code point that begins here, 0 where none does: overlong forms, surrogates and what is over U+10FFFF are none.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t at) { return at < text.size() ? static_cast<uint8_t>(text[at]) : 0u; };
  const uint32_t lead = byte(0), second = byte(1);
  const auto follows = [&](size_t at) { return (byte(at) & 0xc0) == 0x80; };
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead < 0xe0) return follows(1) ? 2 : 0;
  if (lead >= 0xe0 && lead < 0xf0) {
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second >= 0xa0)) return 0;
    return follows(1) && follows(2) ? 3 : 0;
  }
  if (lead >= 0xf0 && lead < 0xf5) {
    if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second >= 0x90)) return 0;
    return follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

// Reads from front to back. The first thing that is wrong is kept, and the reading unwinds from there.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<Json> parse() {
    Json value = read_value(0);
    skip_space();
    if (error_.empty() && at_ < text_.size()) fail("something follows the end of the value");
    if (!error_.empty()) return Status::error(error_);
    return value;
  }

 private:
  void fail(const char* what) {
    if (error_.empty()) error_ = millrace::text("is not valid JSON: ", what, " at byte ", at_);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) at_++;
  }

  bool take(char wanted) {
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    at_++;
    return true;
  }

  Json read_value(int depth) {
    skip_space();
    if (depth > json_depth_max) return fail("it is nested too deeply"), Json();
    switch (peek()) {
      case '{':
        return read_object(depth);
      case '[':
        return read_array(depth);
      case '"':
        return Json(read_string());
      case 't':
        return read_word("true", Json(true));
      case 'f':
        return read_word("false", Json(false));
      case 'n':
        return read_word("null", Json());
      default:
        return read_number();
    }
  }

  Json read_word(std::string_view word, Json value) {
    if (text_.substr(at_, word.size()) != word) return fail("a value should stand"), Json();
    at_ += word.size();
    return value;
  }

  Json read_array(int depth) {
    Json::Array items;
    at_++;
    skip_space();
    if (take(']')) return Json(std::move(items));
    while (error_.empty()) {
      items.push_back(read_value(depth + 1));
      skip_space();
      if (take(']')) break;
      if (!take(',')) fail("a comma or the array's end should stand");
    }
    return Json(std::move(items));
  }

  Json read_object(int depth) {
    Json::Object members;
    at_++;
    skip_space();
    if (take('}')) return Json(std::move(members));
    while (error_.empty()) {
      skip_space();
      if (peek() != '"') fail("a key should stand");
      std::string key = error_.empty() ? read_string() : "";
      skip_space();
      if (error_.empty() && !take(':')) fail("a colon should stand");
      if (error_.empty()) members.emplace_back(std::move(key), read_value(depth + 1));
      skip_space();
      if (take('}')) break;
      if (!take(',')) fail("a comma or the object's end should stand");
    }
    check_keys(members);
    return Json(std::move(members));
  }

  void check_keys(const Json::Object& members) {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& [key, value] : members) keys.push_back(key);
    std::sort(keys.begin(), keys.end());
    if (std::adjacent_find(keys.begin(), keys.end()) != keys.end()) fail("an object that ends has one key twice");
  }

  std::string read_string() {
    std::string out;
    at_++;
    while (error_.empty()) {
      if (at_ >= text_.size()) return fail("a string does not end"), out;
      const char c = text_[at_];
      if (c == '"') return at_++, out;
      if (c == '\\') {
        read_escape(out);
      } else if (static_cast<uint8_t>(c) < 0x20) {
        fail("a string has a control character");
      } else {
        const size_t length = utf8_length(text_.substr(at_, 4));
        if (length == 0) return fail("a string is not UTF-8"), out;
        out.append(text_, at_, length);
        at_ += length;
      }
    }
    return out;
  }

  void read_escape(std::string& out) {
    static constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    at_++;
    const char c = peek();
    at_++;
    if (c == 'u') {
      uint32_t point = read_hex();
      if (point >= 0xd800 && point < 0xdc00 && text_.substr(at_, 2) == "\\u") {
        at_ += 2;
        const uint32_t low = read_hex();
        point = low >= 0xdc00 && low < 0xe000 ? 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00) : 0xd800;
      }
      if (point >= 0xd800 && point < 0xe000) return fail("half of a surrogate pair stands alone");
      append_utf8(out, point);
    } else if (const size_t index = letters.find(c); index != std::string_view::npos && c != '\0') {
      out += meanings[index];
    } else {
      fail("an escape is unknown");
    }
  }

  uint32_t read_hex() {
    uint32_t value = 0;
    const std::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4) return fail("four hexadecimal digits should stand"), 0xd800;
    at_ += 4;
    return value;
  }

  Json read_number() {
    const size_t begin = at_;
    take('-');
    if (!is_digit(peek())) return fail("a value should stand"), Json();
    if (!take('0'))
      while (is_digit(peek())) at_++;
    const size_t whole_end = at_;
    if (take('.')) read_digits();
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      read_digits();
    }
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    if (int64_t integer = 0; at_ == whole_end && std::from_chars(first, last, integer).ec == std::errc()) return Json(integer);
    double number = 0;
    if (std::from_chars(first, last, number).ec != std::errc()) return fail("a number is out of range"), Json();
    return Json(number);
  }

  void read_digits() {
    if (!is_digit(peek())) fail("a digit should stand");
    while (is_digit(peek())) at_++;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string error_;
};

}  // namespace

std::optional<bool> Json::boolean() const {
  const auto* value = std::get_if<bool>(&held_);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<int64_t> Json::integer() const {
  const auto* value = std::get_if<int64_t>(&held_);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<double> Json::number() const {
  if (const auto* value = std::get_if<int64_t>(&held_)) return static_cast<double>(*value);
  const auto* value = std::get_if<double>(&held_);
  return value ? std::optional(*value) : std::nullopt;
}

const Json& Json::operator[](std::string_view key) const {
  static const Json none;
  if (const Object* members = object())
    for (const auto& [name, value] : *members)
      if (name == key) return value;
  return none;
}

Result<Json> parse_json(std::string_view text) { return Parser(text).parse(); }

}  // namespace millrace
