#include "kernels.h"

namespace millrace {

const Kernels* kernels_of(KernelSet set, const Machine& machine) {
  const bool is_any = set == KernelSet::automatic || set == KernelSet::cpu;
#if defined(MILLRACE_X86)
  if ((set == KernelSet::avx512 || is_any) && machine.has_avx512) return &avx512_table();
  if ((set == KernelSet::avx2 || is_any) && machine.has_avx2) return &avx2_kernels;
#else
  (void)machine;
#endif
  return set == KernelSet::reference || is_any ? &reference_kernels : nullptr;
}

}  // namespace millrace
