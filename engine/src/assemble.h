// Everything that load puts together: the file, the model, the machine's threads and memory, and the backend over them.
#pragma once

#include <memory>
#include <optional>

#include "base/team.h"
#include "constrain/formats.h"
#include "cuda/cuda.h"
#include "engine.h"
#include "format/model_file.h"
#include "format/vocabulary.h"
#include "kv/slots.h"
#include "model/backend.h"
#include "model/model.h"
#include "schedule/schedule.h"

namespace millrace {

struct Assembly {
  EngineOptions options;  // with what was chosen in place of 0
  std::unique_ptr<ModelFile> file;
  Vocabulary vocabulary;
  Model model;
  ModelInfo info;
  std::optional<CudaMachine> gpu;  // what the model runs on; none: a CPU
  ScheduleLimits schedule_limits;
  std::unique_ptr<Formats> formats;
  std::unique_ptr<Team> team;
  std::unique_ptr<KvSlots> slots;
  int all_slots = 0;  // with those that only cache
  std::unique_ptr<Backend> backend;

  // Frees all that is large and ends the team; what is known of the model and its vocabulary stays.
  void release();
};

Result<std::unique_ptr<Assembly>> assemble(const EngineOptions& options);

}  // namespace millrace
