// One step's events as one flat buffer for the binding; binding/events.ts reads what this writes and has the layout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine.h"

namespace millrace {

std::vector<uint8_t> flatten(std::span<const Event> events);

}  // namespace millrace
