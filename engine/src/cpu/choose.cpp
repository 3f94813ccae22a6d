#include "kernels.h"

namespace millrace {

const Kernels* kernels_of(KernelSet set, const Machine& machine) {
#if defined(MILLRACE_X86)
  if ((set == KernelSet::avx512 || set == KernelSet::automatic) && machine.has_avx512) return &avx512_table();
  if ((set == KernelSet::avx2 || set == KernelSet::automatic) && machine.has_avx2) return &avx2_kernels;
#else
  (void)machine;
#endif
  return set == KernelSet::reference || set == KernelSet::automatic ? &reference_kernels : nullptr;
}

}  // namespace millrace
