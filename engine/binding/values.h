// Values of ours as JavaScript's, and back.
#pragma once

#include <napi.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../src/format/vocabulary.h"

namespace millrace {

inline Napi::Value strings(Napi::Env env, const std::vector<std::string>& values) {
  Napi::Array array = Napi::Array::New(env, values.size());
  for (size_t i = 0; i < values.size(); i++) array.Set(static_cast<uint32_t>(i), values[i]);
  return array;
}

template <typename TypedArray, typename Element>
Napi::Value typed(Napi::Env env, const std::vector<Element>& values) {
  TypedArray array = TypedArray::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

inline std::vector<int32_t> ids(const Napi::Value& value) {
  const Napi::Int32Array array = value.As<Napi::Int32Array>();
  return std::vector<int32_t>(array.Data(), array.Data() + array.ElementLength());
}

inline double number(const Napi::Object& object, const char* name, double fallback) {
  const Napi::Value value = object.Get(name);
  return value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : fallback;
}

inline bool boolean(const Napi::Object& object, const char* name, bool fallback) {
  const Napi::Value value = object.Get(name);
  return value.IsBoolean() ? value.As<Napi::Boolean>().Value() : fallback;
}

inline std::string string(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  return value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
}

inline Napi::Value object_of(Napi::Env env, const Vocabulary& words) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("kind", words.kind);
  object.Set("preTokenizer", words.pre_tokenizer);
  object.Set("tokens", strings(env, words.tokens));
  object.Set("types", typed<Napi::Int32Array>(env, words.types));
  object.Set("scores", typed<Napi::Float32Array>(env, words.scores));
  object.Set("merges", strings(env, words.merges));
  object.Set("chatTemplate", words.chat_template);
  if (!words.tokenizer_json.empty()) object.Set("tokenizerJson", words.tokenizer_json);
  object.Set("bosToken", words.bos);
  object.Set("eosToken", words.eos);
  object.Set("unknownToken", words.unknown);
  object.Set("addBos", words.add_bos);
  object.Set("addSpacePrefix", words.add_space_prefix);
  return object;
}

}  // namespace millrace
