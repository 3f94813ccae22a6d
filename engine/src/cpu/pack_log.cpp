#include <algorithm>

#include "../base/text.h"
#include "pack.h"

namespace millrace {
namespace {

const char* name_of(Packing packing) {
  switch (packing) {
    case Packing::q4:
      return "4-bit bands";
    case Packing::q8:
      return "8-bit bands";
    case Packing::f16:
      return "F16";
    case Packing::bf16:
      return "BF16";
    case Packing::f32:
      break;
  }
  return "F32";
}

bool stays_itself(Type type, Packing packing) {
  switch (packing) {
    case Packing::q4:
      return type == Type::q4_0 || type == Type::q4_1;
    case Packing::q8:
      return type == Type::q8_0;
    case Packing::f16:
      return type == Type::f16;
    case Packing::bf16:
      return type == Type::bf16;
    case Packing::f32:
      break;
  }
  return type == Type::f32;
}

}  // namespace

void PackLog::note(const FileTensor& tensor, Packing packing, float error) {
  const bool derived = tensor.type == Type::derived;
  Entry& entry = entries_[{derived ? tensor.kind : millrace::name_of(static_cast<uint32_t>(tensor.type)), packing}];
  entry.values += tensor.rows() * tensor.columns();
  entry.error = std::max(entry.error, error);
  entry.as_stored = !derived && stays_itself(tensor.type, packing);
}

std::vector<std::string> PackLog::lines() const {
  std::vector<std::string> lines;
  for (const auto& [key, entry] : entries_) {
    const auto& [stored, packing] = key;
    if (entry.as_stored) continue;
    const bool fast = packing == Packing::q4 || packing == Packing::q8;
    const std::string loss = entry.error > 0 ? text("rounded by at most ", entry.error, " of a row's largest") : "exactly";
    lines.push_back(text("weights: ", (entry.values + 500000) / 1000000, " M of ", stored, " as ", name_of(packing), ", ", loss,
                         fast ? "" : ": there are no kernels for it as it is stored, so this is correct but slow"));
  }
  return lines;
}

}  // namespace millrace
