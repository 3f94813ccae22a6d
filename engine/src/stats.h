// What the engine says of itself between two steps.
#pragma once

#include "engine.h"
#include "kv/slots.h"
#include "schedule/schedule.h"

namespace millrace {

// All but what the engine counts itself: steps and tokens.
void describe(const Schedule& schedule, const KvSlots& slots, EngineStats& stats);

}  // namespace millrace
