// Drives lovasz_extension: keys of every pixel, then for each problem a partition into cells of nearby errors, and each
// cell sorted and weighed by itself.
//
// Memory:  op.slope holds first the keys, then the slopes: 4 bytes for each logit, twice what half logits take. Without
//          slopes to keep it holds the keys of a few classes after another, and the softmax is made anew for each lot.
//          Beside it one key for each pixel of a problem, and 16 bytes for each pixel of the largest cell. All of it is
//          double for double logits.
// Threads: they share the problems, or, where these are large, the runs and the cells of one problem after another.
//          Runs and cells follow from the data alone and are added in order, so the bits do not depend on it.
// Cells:   below the last positive every weight is 0, so those cells are not even partitioned.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace segfuse {
namespace {

constexpr int64_t CELLS = LOVASZ_CELLS, PIECE = 1 << 14;
constexpr int64_t RUN = 1 << 17, MOST_RUNS = 32;  // pixels that share counts; counts take 64 KiB a run
constexpr int64_t LARGE = 1 << 19;                // pixels; a larger problem has all threads for itself
constexpr size_t HUGE_PAGES = 4 << 20;            // bytes
constexpr int64_t SERIAL_ELEMENTS = 1 << 14;      // below this a second thread costs more than it brings

int useful_threads(const LovaszExtension& op, int threads) {
  const int64_t useful = op.pass.N * op.classes * op.pass.S / SERIAL_ELEMENTS + 1;
  return static_cast<int>(std::min<int64_t>(threads, useful));
}

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

// Room that grows and is not kept.
class Room {
  std::unique_ptr<void, Free> data;
  size_t bytes = 0;

 public:
  void* of(size_t wanted) {
    if (wanted > bytes) {
      data.reset();
      data.reset(::operator new(wanted, std::align_val_t{64}));
      bytes = wanted;
      if (bytes >= HUGE_PAGES) huge_pages(data.get(), bytes);
    }
    return data.get();
  }
};

const LovaszExtensionFunctions& functions(const LovaszExtension& op) {
  const LovaszExtensionKernels& k = lovasz_extension_kernels();
  return op.pass.input.dtype == F64 ? k.wide : k.single;
}

// body(n, c, begin, end, scratch) for runs of pixels of every sample, and of every class of op for the hinge
template <typename Body>
void for_each_piece(const LovaszExtension& op, size_t scratch_bytes, int threads, Body body) {
  const int64_t classes = op.hinge ? op.classes : 1, pieces = (op.pass.S + PIECE - 1) / PIECE;
  const int64_t total = op.pass.N * classes * pieces;
  parallel(total, threads, [&](auto&& next) {
    Room room;
    void* scratch = room.of(scratch_bytes);
    for (int64_t i; (i = next()) < total;) {
      const int64_t plane = i / pieces, begin = i % pieces * PIECE;
      body(plane / classes, op.first + plane % classes, begin, std::min(begin + PIECE, op.pass.S), scratch);
    }
  });
}

struct Cell {
  int64_t begin, size, F, B;  // where its pixels lie; positives and negatives above it
  bool unequal;               // the weights of positives alone are all the same
};

struct Outcome {
  double value;
  int64_t positives;
};

// One problem on `threads` threads.
struct Solver {
  const LovaszExtension& op;
  const LovaszExtensionFunctions& k;
  int threads;
  Room counts_room, sorted_room, buffer_room;

  Outcome operator()(int64_t problem) {
    const int64_t pixels = op.pass.S * (op.per_image ? 1 : op.pass.N);
    const int64_t runs = std::clamp<int64_t>((pixels + RUN - 1) / RUN, 1, MOST_RUNS);
    const int64_t length = (pixels + runs - 1) / runs;
    auto for_each_run = [&](auto body) {
      parallel(runs, threads, [&](auto&& next) {
        for (int64_t r; (r = next()) < runs;) body(r, std::min(r * length, pixels), std::min((r + 1) * length, pixels));
      });
    };

    uint32_t* counts = static_cast<uint32_t*>(counts_room.of(runs * CELLS * 2 * sizeof(uint32_t)));
    for_each_run([&](int64_t r, int64_t begin, int64_t end) {
      uint32_t* own = counts + r * CELLS * 2;
      std::fill_n(own, CELLS * 2, 0);
      k.count(op, problem, begin, end, own);
    });

    std::vector<int64_t> total(CELLS * 2, 0);
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t i = 0; i < CELLS * 2; ++i) total[i] += counts[r * CELLS * 2 + i];
    int64_t G = 0;
    for (int64_t i = 0; i < CELLS; ++i) G += total[2 * i + 1];

    // The last cell holds what has no error. The others down to that of the last positive, and at least one.
    std::vector<Cell> cells;
    int64_t lowest = CELLS - 1, kept = 0, F = 0, B = 0;
    if (op.wanted[op.first + problem % op.classes] && (G > 0 || !op.present)) {
      while (lowest > 0 && (kept == 0 || F < G)) {
        const int64_t negatives = total[2 * --lowest], positives = total[2 * lowest + 1], size = negatives + positives;
        if (size == 0) continue;
        cells.push_back({kept, size, F, B, negatives > 0});
        kept += size, F += positives, B += negatives;
      }
    }
    // Counts become cursors, [r, cell, way], for the way to the cells and back. A run has a place of its own for what
    // goes to no cell.
    for (int64_t r = 0; r < runs; ++r) std::fill_n(counts + r * CELLS * 2, lowest * 2, static_cast<uint32_t>(kept + r));
    int64_t at = 0;
    for (int64_t cell = CELLS - 2; cell >= lowest; --cell)
      for (int64_t r = 0; r < runs; ++r) {
        uint32_t* own = counts + (r * CELLS + cell) * 2;
        const uint32_t here = own[0] + own[1];
        own[0] = own[1] = static_cast<uint32_t>(at);
        at += here;
      }
    for (int64_t r = 0; r < runs; ++r)
      std::fill_n(counts + (r * CELLS + CELLS - 1) * 2, 2, static_cast<uint32_t>(kept + r));

    const size_t slopes = (kept + runs) * k.key;
    char* sorted = static_cast<char*>(sorted_room.of(slopes));
    for_each_run([&](int64_t r, int64_t begin, int64_t end) {
      k.partition(op, problem, begin, end, lowest, counts + r * CELLS * 2, sorted);
    });
    std::fill(sorted + kept * k.key, sorted + slopes, 0);

    const int64_t n_cells = static_cast<int64_t>(cells.size());
    std::vector<double> parts(cells.size());
    auto weigh = [&](int64_t i, Room& room) {
      const Cell& cell = cells[i];
      void* buffer = cell.unequal ? room.of(cell.size * k.sorting) : nullptr;
      parts[i] = k.weigh(sorted + cell.begin * k.key, cell.size, G, cell.F, cell.B, cell.unequal, buffer);
    };
    parallel(n_cells, threads, [&](auto&& next) {
      Room own;
      for (int64_t i; (i = next()) < n_cells;) weigh(i, threads == 1 ? buffer_room : own);
    });

    if (op.keep_slopes)
      for_each_run([&](int64_t r, int64_t begin, int64_t end) {
        k.collect(op, problem, begin, end, lowest, counts + r * CELLS * 2 + 1, sorted);
      });
    double value = 0;
    for (double part : parts) value += part;
    return {value, G};
  }
};

// The classes that op.slope has room for. Returns the number of invalid targets.
int64_t classes_forward(const LovaszExtension& op, double* value, double* positives, int threads) {
  const LovaszExtensionFunctions& k = functions(op);
  threads = useful_threads(op, threads);
  std::atomic<int64_t> invalid{0};
  for_each_piece(op, k.scratch(op), threads, [&](int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
    invalid += k.keys(op, n, c, begin, end, scratch);
  });

  const int64_t problems = (op.per_image ? op.pass.N : 1) * op.classes;
  const int64_t pixels = op.pass.S * (op.per_image ? 1 : op.pass.N);
  auto solve = [&](Solver& solver, int64_t i) {
    const Outcome found = solver(i);
    const int64_t at = i / op.classes * op.pass.C + op.first + i % op.classes;
    value[at] = found.value;
    positives[at] = static_cast<double>(found.positives);
  };
  if (pixels > LARGE || problems < threads) {
    Solver solver{op, k, threads, {}, {}, {}};
    for (int64_t i = 0; i < problems; ++i) solve(solver, i);
  } else {
    parallel(problems, threads, [&](auto&& next) {
      Solver solver{op, k, 1, {}, {}, {}};
      for (int64_t i; (i = next()) < problems;) solve(solver, i);
    });
  }
  return invalid;
}

}  // namespace

int64_t lovasz_extension_forward(const LovaszExtension& op, double* value, double* positives, int threads) {
  int64_t invalid = 0;
  LovaszExtension part = op;
  for (part.first = 0; part.first < op.pass.C; part.first += op.classes) {
    part.classes = std::min(op.classes, op.pass.C - part.first);
    const int64_t found = classes_forward(part, value, positives, threads);
    invalid = op.hinge ? invalid + found : found;  // exclusive classes share their target
  }
  return invalid;
}

void lovasz_extension_backward(const LovaszExtension& op, const double* coefficient, int threads) {
  const LovaszExtensionFunctions& k = functions(op);
  threads = useful_threads(op, threads);
  for_each_piece(op, k.scratch(op), threads, [&](int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
    k.gradient(op, n, c, begin, end, coefficient, scratch);
  });
}

}  // namespace segfuse
