#include "tiny_engine.h"

#include <algorithm>

namespace millrace::test {

TinyEngine::TinyEngine(EngineOptions options, const TinyShape& shape) : path(tiny_model(shape, random)) {
  options.path = path.path();
  options.threads = 2;
  options.slots = std::min(options.slots, 8);
  engine = load(options, recorder);
}

uint32_t TinyEngine::submit(Request request) {
  request.id = ++last;
  const Status status = engine->submit(request);
  REQUIRE(status.ok(), status.message());
  return last;
}

std::string TinyEngine::refusal(Request request) {
  request.id = ++last;
  return engine->submit(request).message();
}

}  // namespace millrace::test
