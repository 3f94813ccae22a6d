// Teacher-forced logits, computed in one go on the engine's thread, in a slot of their own and without what is cached.
#pragma once

#include <cstdint>
#include <vector>

#include "assemble.h"

namespace millrace {

// Logits of every position, [tokens][vocabulary], in steps of at most chunk_tokens.
Result<std::vector<float>> evaluate_now(Assembly& parts, const std::vector<int32_t>& tokens, int chunk_tokens);

}  // namespace millrace
