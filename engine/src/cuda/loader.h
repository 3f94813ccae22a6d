// Weights on their way from the file to the device. Each thread of a team takes the next piece of any matrix, reads it into a pinned buffer of its
// own, has it copied in a stream of its own, and meanwhile reads the next piece into its other buffer: nobody waits for all, and all the buffers
// together stay in a server's last level of cache, between the thread that writes one and the link that takes it.
#pragma once

#include <cstdint>
#include <vector>

#include "../base/team.h"
#include "../format/model_file.h"
#include "kernels.h"

namespace millrace {

// A matrix to be filled, of the tensors' rows one after another.
struct MatrixCopy {
  std::vector<const FileTensor*> tensors;
  DeviceMatrix::Type type = DeviceMatrix::Type::bf16;
  bool keeps_bits = false;                // the file has them as E4M3 already
  int columns = 0;                        // with those that are zero
  uint64_t values_at = 0, scales_at = 0;  // bytes behind `to`
};

// Returns when all is on the device. Throws CudaError where a file ends early, a row is too long or a copy fails, once all threads have ended.
void load_matrices(const ModelFile& file, Team& team, const std::vector<MatrixCopy>& copies, uint8_t* to);

}  // namespace millrace
