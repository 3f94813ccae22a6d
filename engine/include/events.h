// One step's events as one flat buffer for the binding; binding/events.ts reads what this writes and has the layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine.h"

namespace millrace {

// Most tokens of one event: a record counts them in 16 bits.
constexpr size_t event_ids_max = 0xffff;

std::vector<uint8_t> flatten(std::span<const Event> events);

}  // namespace millrace
