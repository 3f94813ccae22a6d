// An engine with a tiny model of its own, whose requests are numbered as they come.
#pragma once

#include <memory>
#include <string>

#include "engine.h"
#include "random.h"
#include "recorder.h"
#include "test.h"
#include "tiny_model.h"

namespace millrace::test {

struct TinyEngine {
  Random random;
  TemporaryFile path;
  Recorder recorder;
  std::unique_ptr<Engine> engine;
  uint32_t last = 0;  // the id of the latest request, of those that were refused too

  // Runs on two threads with at most eight slots. Its vocabulary has a token that ends an answer, unless the shape says otherwise.
  explicit TinyEngine(EngineOptions options = {}, const TinyShape& shape = {.vocabulary = 260, .end_token = true});

  // The id of a request that has to be taken; a test of one that is not asks for the refusal's sentence.
  uint32_t submit(Request request);
  Told ask(const Request& request) { return recorder.finished(submit(request)); }
  std::string refusal(Request request);
};

}  // namespace millrace::test
