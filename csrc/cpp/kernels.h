// What an instruction-set unit offers. pixel_stats_kernels.cpp is compiled once per set, each in a namespace of its
// own; isa.cpp chooses one at load. A chunk is a run of pixels of one sample, cut at multiples of the tile.
#pragma once
#include "../segfuse.h"

namespace segfuse {

struct Kernels {
  // Pixels per tile and bytes of scratch for one thread.
  int64_t (*tile)(const PixelStats& op);
  size_t (*scratch)(const PixelStats& op);
  // partial: [K] of class c, or [K, C] under softmax, every entry written; nullptr: no sums. The gradient is written
  // where op.output is given. Returns the number of targets and weights out of range.
  int64_t (*pass)(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, double* partial,
                  void* scratch);
  int64_t (*map)(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch);
};

#define SEGFUSE_DECLARE_ISA(isa) \
  namespace isa {                \
  extern const Kernels kernels;  \
  }
SEGFUSE_DECLARE_ISA(baseline)
SEGFUSE_DECLARE_ISA(avx2)
SEGFUSE_DECLARE_ISA(avx512)

const Kernels& kernels();  // of the set in use

}  // namespace segfuse
