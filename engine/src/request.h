// What a request must be before the schedule sees it.
#pragma once

#include <cstdint>
#include <vector>

#include "engine.h"
#include "schedule/schedule.h"
#include "status.h"

namespace millrace {

Status check_tokens(const std::vector<int32_t>& tokens, const ModelInfo& model);
Status check_request(const Request& request, const ModelInfo& model);
// Why one that could run was refused for now.
Status refusal(const Request& request, const Schedule& schedule, const ScheduleLimits& limits);

}  // namespace millrace
