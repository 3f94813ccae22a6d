// The engine's attention kernel twice over: with pages one after another in a range, as the product has it, and with pages wherever a
// block table says. The tile code is the same; the address of a page is a template parameter.
#pragma once

#include "cpu/kernels.h"

namespace millrace::bench {

struct TableTask : AttendTask {
  const uint8_t* const* table;  // [pages of the sequence], each its physical place
};

struct PagesOfTable {
  static const uint8_t* page(const AttendTask& task, int index) { return static_cast<const TableTask&>(task).table[index]; }
};

struct PagingKernels {
  const char* name;
  void (*ranges)(const TableTask& task);  // uses task.base
  void (*tables)(const TableTask& task);  // uses task.table
};

extern const PagingKernels paging_avx2, paging_avx512;

}  // namespace millrace::bench
