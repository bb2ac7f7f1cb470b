// What an instruction-set unit offers: a table of functions for each op. <op>_kernels.cpp is compiled once per set,
// each in a namespace of its own, and defines `<op>_table` there; `<op>_kernels()` is the table of the set in use.
#pragma once
#include "../segfuse.h"

namespace segfuse {

int isa();  // 0 baseline, 1 AVX2, 2 AVX-512; chosen once, at load (isa.cpp)

#ifdef SEGFUSE_X86
#define SEGFUSE_TABLE(Table, op)                                                                   \
  namespace baseline {                                                                             \
  extern const Table op##_table;                                                                   \
  }                                                                                                \
  namespace avx2 {                                                                                 \
  extern const Table op##_table;                                                                   \
  }                                                                                                \
  namespace avx512 {                                                                               \
  extern const Table op##_table;                                                                   \
  }                                                                                                \
  inline const Table& op##_kernels() {                                                             \
    return isa() == 2 ? avx512::op##_table : isa() == 1 ? avx2::op##_table : baseline::op##_table; \
  }
#else
#define SEGFUSE_TABLE(Table, op) \
  namespace baseline {           \
  extern const Table op##_table; \
  }                              \
  inline const Table& op##_kernels() { return baseline::op##_table; }
#endif

// A chunk is a run of pixels of one sample, cut at multiples of the tile.
struct PixelStatsKernels {
  // Pixels per tile and bytes of scratch for one thread.
  int64_t (*tile)(const PixelStats& op);
  size_t (*scratch)(const PixelStats& op);
  // partial: [K] of class c, or [K, C] under softmax, every entry written; nullptr: no sums. The gradient is written
  // where op.output is given. Returns the number of targets and weights out of range.
  int64_t (*pass)(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, double* partial,
                  void* scratch);
  int64_t (*map)(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch);
};
SEGFUSE_TABLE(PixelStatsKernels, pixel_stats)

// Fields of erosion are rows of `pitch` values; column x lies at MARGIN + x, so that both neighbours of a row exist.
// A row whose `live` is 0 holds zeros that were never written.
struct ErosionField {
  void* values;
  uint8_t* live;
  double low, scale;  // b = (e - low) scale
  double high;
};
struct ErosionPartial {
  double low, high, sum, other;
  int64_t at_high, at_low;
};
struct ErosionKernels {
  int64_t (*pitch)(int64_t columns);
  // out = m (p - y)^2 and, unless the pair is plain, u; partial.sum = sum u
  void (*start)(const Erosion& op, int64_t n, int64_t c, int64_t begin, int64_t end, const ErosionField& out, void* u,
                ErosionPartial& partial);
  // out = relu(B * b - 1/2); partial: its bounds and sum u out. edge: a row of in.low
  void (*erode)(const Erosion& op, int64_t begin, int64_t end, const ErosionField& in, const void* edge, const void* u,
                const ErosionField& out, ErosionPartial& partial);
  // out = [e > 0] (B * grad + power u); partial.sum: sum out b, other: sum out. edge: a row of 0; no grad: 0
  void (*back)(const Erosion& op, int64_t begin, int64_t end, const ErosionField* grad, const void* edge, const void* u,
               double power, const ErosionField& e, const ErosionField& out, ErosionPartial& partial);
  // Adds what the bounds of e pass on to the pixels that attain them.
  void (*bounds)(const Erosion& op, int64_t begin, int64_t end, const ErosionField& e, double to_high, double to_low,
                 const ErosionField& grad);
  // Fills what surrounds the image with e.low, and a row of `edge`.
  void (*surround)(const Erosion& op, const ErosionField& e, void* edge);
  // pair.grad = 2 m (p - y) B * grad
  void (*finish)(const Erosion& op, int64_t n, int64_t c, int64_t begin, int64_t end, const ErosionField& grad,
                 const void* edge);
};
SEGFUSE_TABLE(ErosionKernels, erosion)

struct DiskSumsKernels {
  // Bytes of the running sums of a row, and of scratch for one thread.
  int64_t (*row_bytes)(const DiskSums& op, bool wide);
  int64_t (*scratch_bytes)(const DiskSums& op, bool wide);
  // Writes rows [begin, end) of the running sums. wide: 64 bits.
  void (*run)(const DiskSums& op, bool wide, int64_t n, int64_t c, int64_t begin, int64_t end, void* running);
  // Sums their pixels and writes their gradient. points: pixels of every ball.
  double (*weigh)(const DiskSums& op, bool wide, const int64_t* points, int64_t n, int64_t c, int64_t begin,
                  int64_t end, const void* running, void* scratch);
};
SEGFUSE_TABLE(DiskSumsKernels, disk_sums)

struct PairwisePoint {
  double at[3];   // plane, row, column
  double weight;  // of the point in the mean over points
  double least;   // smallest value over the pixels, and where it first is
  int64_t row, column;
  double sum;     // over the pixels: u (least / g)^-a
  double factor;  // of the derivative
};
struct PairwiseGroup {
  int64_t n, c;
  PairwisePoint* points;
  int64_t count;
  double d_max, eps, exponent;
};
struct PairwiseHausdorffKernels {
  int64_t (*scratch_bytes)(const PairwiseHausdorff& op);
  // sum u and sum u p of rows [begin, end)
  void (*mass)(const PairwiseHausdorff& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch, double* u,
               double* up);
  // least, row and column; then sum, of points [begin, end) over all pixels
  void (*least)(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, void* scratch);
  void (*sum)(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, void* scratch);
  // sum u p min_t d of rows [begin, end); pair.grad = u (min_t d nearest + the derivative of the mean over points)
  double (*pixels)(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, double nearest,
                   void* scratch);
  // pair.grad += u shift
  void (*shift)(const PairwiseHausdorff& op, int64_t n, int64_t c, int64_t begin, int64_t end, double shift,
                void* scratch);
  // pair.grad of the pixel that is least for a point += factor times the slope there, for all points in order
  void (*scatter)(const PairwiseHausdorff& op, const PairwiseGroup& group);
};
SEGFUSE_TABLE(PairwiseHausdorffKernels, pairwise_hausdorff)

}  // namespace segfuse
