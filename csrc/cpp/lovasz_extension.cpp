// Drives lovasz_extension: keys of every pixel, then for each problem a partition into cells of nearby errors, and each
// cell sorted and weighed by itself.
//
// Memory:  op.slope holds first the keys, then the slopes. Beside it one sorted pixel (8 bytes) for each pixel of a
//          problem that is sorted, and as much again of the largest cell.
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

// body(n, c, begin, end, scratch) for runs of pixels of every sample, and of every class for the hinge
template <typename Body>
void for_each_piece(const LovaszExtension& op, size_t scratch_bytes, int threads, Body body) {
  const int64_t classes = op.hinge ? op.pass.C : 1, pieces = (op.pass.S + PIECE - 1) / PIECE;
  const int64_t total = op.pass.N * classes * pieces;
  parallel(total, threads, [&](auto&& next) {
    Room room;
    void* scratch = room.of(scratch_bytes);
    for (int64_t i; (i = next()) < total;) {
      const int64_t plane = i / pieces, begin = i % pieces * PIECE;
      body(plane / classes, plane % classes, begin, std::min(begin + PIECE, op.pass.S), scratch);
    }
  });
}

struct Cell {
  int64_t begin, size, F, B;  // where its pixels lie; positives and negatives above it
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
  Room counts_room, elements_room, buffer_room;

  Outcome operator()(int64_t problem) {
    const int64_t pixels = op.pass.S * (op.per_image ? 1 : op.pass.N);
    const int64_t runs = std::clamp<int64_t>((pixels + RUN - 1) / RUN, 1, MOST_RUNS);
    const int64_t length = (pixels + runs - 1) / runs;
    auto run_of = [&](int64_t r) {
      return std::pair(std::min(r * length, pixels), std::min((r + 1) * length, pixels));
    };

    uint32_t* counts = static_cast<uint32_t*>(counts_room.of(runs * CELLS * 2 * sizeof(uint32_t)));
    parallel(runs, threads, [&](auto&& next) {
      for (int64_t r; (r = next()) < runs;) {
        uint32_t* own = counts + r * CELLS * 2;
        std::fill(own, own + CELLS * 2, 0);
        k.count(op, problem, run_of(r).first, run_of(r).second, own);
      }
    });

    std::vector<int64_t> total(CELLS * 2, 0);
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t i = 0; i < CELLS * 2; ++i) total[i] += counts[r * CELLS * 2 + i];
    int64_t G = 0;
    for (int64_t i = 0; i < CELLS; ++i) G += total[2 * i + 1];

    // The last cell holds what has no error. The others down to that of the last positive, and at least one.
    std::vector<Cell> cells;
    int64_t lowest = CELLS - 1, kept = 0, F = 0, B = 0;
    if (op.wanted[problem % op.pass.C] && (G > 0 || !op.present)) {
      while (lowest > 0 && (kept == 0 || F < G)) {
        --lowest;
        const int64_t size = total[2 * lowest] + total[2 * lowest + 1];
        if (size == 0) continue;
        cells.push_back({kept, size, F, B});
        int64_t at = kept;
        for (int64_t r = 0; r < runs; ++r) {
          uint32_t* own = counts + (r * CELLS + lowest) * 2;
          const uint32_t here = own[0] + own[1];
          own[0] = static_cast<uint32_t>(at);
          at += here;
        }
        kept = at;
        B += total[2 * lowest];
        F += total[2 * lowest + 1];
      }
    }

    char* elements = static_cast<char*>(elements_room.of((kept + runs) * k.element));
    parallel(runs, threads, [&](auto&& next) {
      for (int64_t r; (r = next()) < runs;)
        k.partition(op, problem, run_of(r).first, run_of(r).second, lowest, counts + r * CELLS * 2, elements,
                    static_cast<uint32_t>(kept + r));
    });

    std::vector<double> parts(cells.size());
    const int64_t n_cells = static_cast<int64_t>(cells.size());
    auto weigh = [&](int64_t i, Room& buffer) {
      const Cell& cell = cells[i];
      const int64_t F_below = i + 1 < n_cells ? cells[i + 1].F : F;
      const int64_t positives = F_below - cell.F;
      const bool mixed = positives < cell.size;
      void* room = mixed ? buffer.of(cell.size * k.element) : nullptr;
      parts[i] = k.weigh(op, problem, elements + cell.begin * k.element, cell.size, G, cell.F, cell.B, mixed, room);
    };
    if (threads == 1) {
      for (int64_t i = 0; i < n_cells; ++i) weigh(i, buffer_room);
    } else {
      parallel(n_cells, threads, [&](auto&& next) {
        Room buffer;
        for (int64_t i; (i = next()) < n_cells;) weigh(i, buffer);
      });
    }
    double value = 0;
    for (double part : parts) value += part;
    return {value, G};
  }
};

}  // namespace

int64_t lovasz_extension_forward(const LovaszExtension& op, double* value, double* positives, int threads) {
  const LovaszExtensionFunctions& k = functions(op);
  std::atomic<int64_t> invalid{0};
  for_each_piece(op, k.scratch(op), threads, [&](int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
    invalid += k.keys(op, n, c, begin, end, scratch);
  });

  const int64_t problems = (op.per_image ? op.pass.N : 1) * op.pass.C;
  const int64_t pixels = op.pass.S * (op.per_image ? 1 : op.pass.N);
  auto solve = [&](Solver& solver, int64_t i) {
    const Outcome found = solver(i);
    value[i] = found.value;
    positives[i] = static_cast<double>(found.positives);
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

void lovasz_extension_backward(const LovaszExtension& op, const double* coefficient, int threads) {
  const LovaszExtensionFunctions& k = functions(op);
  for_each_piece(op, k.scratch(op), threads, [&](int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
    k.gradient(op, n, c, begin, end, coefficient, scratch);
  });
}

}  // namespace segfuse
