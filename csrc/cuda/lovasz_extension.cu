// The Lovasz extension on a GPU: keys of every pixel, then for some classes at a time a stable radix sort, a scan of
// the positives and the weights. Backward: one pass over the logits and the slopes.
//
// Memory:    C s + L + 4 C bytes for each pixel must move forward, 2 C s + 4 C backward (s: of a logit, L: of a label;
//            4 of a slope, 8 for double logits). Sorting moves about 100 more for each pixel and class, half as many
//            without a gradient, since keys then move alone: each of 4 digits (8 of double) is read twice and written
//            once. Its room is 16 bytes (24) for each pixel that is sorted at a time, about LOT, and mostly L2 cache.
// Left out:  ignored pixels, hinge errors <= 0, and negatives below the last positive, whose weights are 0, are dropped
//            by the first pass. A class that is not wanted, or absent where only present ones count, is not sorted.
// Numerics:  float (double for double logits) for the errors; weights in double, in closed form, from whole counts.
// Order:     by descending error, equal errors by ascending index. Places in the order are whole numbers, and the loss
//            is a sum over tiles of sorted pixels by index: the bits depend on the problem alone.
// Broken:    a target out of range makes the loss of its problem, and the slopes there, NaN. It is the same for every
//            class where classes exclude each other.
// Source:    Berman et al. 2018 (arXiv 1705.08790), algorithm 1.
#include <type_traits>

#include "../lovasz.h"
#include "../segfuse_cuda.h"
#include "../terms.h"
#include "pixels.cuh"

namespace segfuse {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int ITEMS = 16;                            // pixels of a thread
constexpr int64_t TILE = THREADS * ITEMS;            // that a block ranks at a time
constexpr int64_t ELEMENT_TILE = 4 * THREADS;        // pixels of a block that makes keys or gradients of one class
constexpr int PIXEL_THREADS = 128;                   // of a block that does so for all classes, a thread for each pixel
constexpr int64_t COLUMN_ROOM = 64 << 10;            // bytes of shared memory for the exponentials of a block
constexpr int DIGIT_BITS = 8, DIGITS = THREADS;      // a thread for each digit
constexpr int64_t LOT = 1 << 22, LOT_CLASSES = 128;  // pixels and classes that are sorted at a time
constexpr int64_t FEW_RUNS = 16;                     // whose counts one block adds up
#ifdef SEGFUSE_EMULATION
constexpr int64_t BLOCKS = 24;  // so that small tensors have runs of several tiles
#else
constexpr int64_t BLOCKS = 384;  // of a pass; about as many as run at once
#endif
static_assert(DIGITS == 1 << DIGIT_BITS && DIGITS == WARPS * WARP, "a thread for each digit");

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ------------------------------------------------------------------------------------------------ keys

// Where a pixel lies in op.slope.
__device__ __forceinline__ int64_t slope_at(const LovaszExtension& op, int64_t n, int64_t c, int64_t i) {
  return (n * op.classes + c - op.first) * op.pass.S + i;
}

// The counts of targets out of range are one for each problem; exclusive classes share that of the first.
__device__ __forceinline__ void report(const LovaszExtension& op, uint32_t* broken, int64_t n, int64_t c) {
  atomicOr(broken + (op.per_image ? n : 0) * op.pass.C + c, 1u);
}

// Grid: N * classes * tiles.
template <typename Storage>
__global__ void __launch_bounds__(THREADS)
    hinge_keys(const __grid_constant__ LovaszExtension problem, uint32_t* broken, int64_t tiles) {
  using T = typename Compute<Storage>::Type;
  const PixelStats& op = problem.pass;
  const int64_t plane = blockIdx.x / tiles, n = plane / problem.classes, c = problem.first + plane % problem.classes;
  const int64_t begin = blockIdx.x % tiles * ELEMENT_TILE, end = min_(begin + ELEMENT_TILE, op.S);
  Key<T>* keys = static_cast<Key<T>*>(problem.slope) + slope_at(problem, n, c, 0);
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    const Label<T> label = classify(op, at<T>(op, op.target, n, c, i), T(1), true, unmasked(op, n, c, i));
    if (label.broken) report(problem, broken, n, c);
    T z = logit<Storage>(op, n, c, i, false);
    if (op.activation == IDENTITY) z = log_(max_(CLAMP<T>, z)) - log_(max_(CLAMP<T>, T(1) - z));  // back to the score
    keys[i] = label.valid ? hinge_key(T(1) - z * (T(2) * label.y - T(1)), label.y) : NO_ERROR<T>;
  }
}

// The probabilities of one pixel. NaN and +inf make all of them NaN. `column`: room for an exponential of each class,
// PIXEL_THREADS apart, or nullptr.
template <typename Storage>
struct Probabilities {
  using T = typename Compute<Storage>::Type;
  const Storage* x;
  int64_t channel;
  T* column;
  T top = T(0), inverse = T(1);
  bool softmax;

  // visit(c, e) is called for every class with what its probability is proportional to; `inverse` is the factor.
  template <typename Visit>
  __device__ __forceinline__ Probabilities(const PixelStats& op, int64_t n, int64_t i, T* column, Visit visit)
      : x(reinterpret_cast<const Storage*>(op.input.data) + n * op.input.batch + pixel_offset(op, op.input, i)),
        channel(op.input.channel),
        column(column),
        softmax(op.activation == SOFTMAX) {
    if (!softmax) return;
#pragma unroll 4
    for (int64_t c = 0; c < op.C; ++c) {
      const T z = widen(x[c * channel]);
      if (column != nullptr) column[c * PIXEL_THREADS] = z;
      if (c == 0 || z > top) top = z;
    }
    T sum = T(0);
#pragma unroll(sizeof(T) == sizeof(float) ? 4 : 2)
    for (int64_t c = 0; c < op.C; ++c) {
      const T e = exp_negative((column == nullptr ? widen(x[c * channel]) : column[c * PIXEL_THREADS]) - top);
      if (column != nullptr) column[c * PIXEL_THREADS] = e;
      sum += e;
      visit(c, e);
    }
    inverse = T(1) / sum;
  }

  __device__ __forceinline__ T operator()(int64_t c) const {
    if (!softmax) return widen(x[c * channel]);
    return (column == nullptr ? exp_negative(widen(x[c * channel]) - top) : column[c * PIXEL_THREADS]) * inverse;
  }
};

// Of exclusive classes. Grid: N * tiles. Shared: columns T [C, PIXEL_THREADS], where there is room.
template <typename Storage>
__global__ void __launch_bounds__(PIXEL_THREADS)
    pixel_keys(const __grid_constant__ LovaszExtension problem, uint32_t* broken, int64_t tiles, bool columns) {
  using T = typename Compute<Storage>::Type;
  const PixelStats& op = problem.pass;
  const int64_t n = blockIdx.x / tiles, i = blockIdx.x % tiles * PIXEL_THREADS + threadIdx.x;
  if (i >= op.S) return;
  bool keep = true, wrong = false;
  int64_t own = -1;
  if (op.index_target) {
    const Label<T> label =
        classify(op, at<T>(op, op.target, n, 0, i), static_cast<T>(op.C - 1), true, unmasked(op, n, 0, i));
    keep = label.valid;
    wrong = label.broken;
    own = static_cast<int64_t>(label.y);
  } else {
    for (int64_t c = 0; c < op.C; ++c) {  // one ignored class drops the pixel
      const Label<T> label = classify(op, at<T>(op, op.target, n, c, i), T(1), true, unmasked(op, n, c, i));
      keep = keep && label.valid;
      wrong = wrong || label.broken;
    }
  }
  if (wrong) report(problem, broken, n, 0);

  Key<T>* keys = static_cast<Key<T>*>(problem.slope) + slope_at(problem, n, problem.first, i);
  if (!keep) {
    for (int64_t c = 0; c < problem.classes; ++c) keys[c * op.S] = NO_ERROR<T>;
    return;
  }
  T* const column = columns ? reinterpret_cast<T*>(shared_memory()) + threadIdx.x : nullptr;
  const Probabilities<Storage> p(op, n, i, column, [](int64_t, T) {});
  const int64_t last = problem.first + problem.classes;
  if (op.index_target) {
#pragma unroll 4
    for (int64_t c = problem.first; c < last; ++c, keys += op.S) {
      const T y = own == c ? T(1) : T(0);
      *keys = key_of(y - p(c), y);
    }
    return;
  }
#pragma unroll 1
  for (int64_t c = problem.first; c < last; ++c, keys += op.S) {
    const T y = at<T>(op, op.target, n, c, i);
    *keys = key_of(y - p(c), y);
  }
}

// ------------------------------------------------------------------------------------------------ problems

struct State {                   // of a problem
  unsigned long long last;       // the largest complement of the key of a positive; 0: there is none
  unsigned long long most;       // the largest key
  unsigned long long positives;  // G
  unsigned long long kept;       // pixels that are sorted
};

// Problems that are sorted together: those of some classes.
template <typename T>
struct Lot {
  int64_t problems, pixels;                // how many, and of each
  int64_t first, classes;                  // the problems are [rows, classes]
  int64_t S, stride;                       // of a sample in `slope`
  bool one_sample, present, hinge, pairs;  // pairs: pixels are sorted as well as keys, and slopes written
  uint32_t wanted[LOT_CLASSES / 32];
  int64_t C;
  int64_t runs, tiles;  // of one problem

  Key<T>* slope;           // of the first class: first the keys, then the slopes
  const uint32_t* broken;  // [rows, C]

  State* state;              // [problems]
  uint32_t* totals;          // [problems, DIGITS]
  uint32_t* counts;          // [problems, runs, DIGITS]
  uint32_t* tile_positives;  // [problems, tiles]
  double* tile_sum;          // [problems, tiles]
  Key<T>* keys[2];           // [problems, pixels]; written in turn
  uint32_t* places[2];       // the same; where a pixel lies, from the first of its problem on

  // The classes [first, first + count) of those that op.slope holds, in room that begins at `memory`.
  Lot(const LovaszExtension& op, int64_t first, int64_t count, char* memory)
      : problems((op.per_image ? op.pass.N : 1) * count),
        pixels(op.pass.S * (op.per_image ? 1 : op.pass.N)),
        first(first),
        classes(count),
        S(op.pass.S),
        stride(op.classes * op.pass.S),
        one_sample(op.per_image || op.pass.N == 1),
        present(op.present),
        hinge(op.hinge),
        pairs(op.keep_slopes),
        wanted{},
        C(op.pass.C),
        tiles(ceil_div(pixels, TILE)),
        slope(static_cast<Key<T>*>(op.slope) + (first - op.first) * op.pass.S),
        broken(nullptr) {
    runs = max_(int64_t(1), min_(tiles, BLOCKS / max_(problems, int64_t(1))));
    for (int64_t c = 0; op.wanted != nullptr && c < count; ++c)
      if (op.wanted[first + c]) wanted[c / 32] |= 1u << c % 32;
    char* free = memory;
    auto take = [&free](auto*& pointer, int64_t number) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(free);
      free += ceil_div(number * static_cast<int64_t>(sizeof(*pointer)), 16) * 16;
    };
    take(state, problems);
    take(totals, problems * DIGITS);
    cleared = free - memory;
    take(tile_sum, problems * tiles);
    // No lot of fewer classes takes more.
    take(counts, max_(problems, min_(problems * tiles, BLOCKS)) * DIGITS);
    take(tile_positives, problems * tiles);
    for (auto& side : keys) take(side, problems * pixels);
    for (auto& side : places) take(side, pairs ? problems * pixels : 0);
    bytes = free - memory;
  }
  int64_t bytes, cleared;  // cleared: how many of them, from `state` on, begin as 0

  bool any_wanted() const {
    for (const uint32_t bits : wanted)
      if (bits != 0) return true;
    return false;
  }
  __device__ __forceinline__ bool is_wanted(int64_t problem) const {
    const int64_t c = problem % classes;
    return wanted[c / 32] >> c % 32 & 1;
  }
  __device__ __forceinline__ bool skips(int64_t problem) const {
    return !is_wanted(problem) || (present && state[problem].positives == 0);
  }
  __device__ __forceinline__ bool is_broken(int64_t problem) const {
    return broken[problem / classes * C + (hinge ? first + problem % classes : 0)] != 0;
  }
  __device__ __forceinline__ Key<T>* slopes_of(int64_t problem) const {
    return slope + problem / classes * stride + problem % classes * S;
  }
  // Where pixel i of a problem lies in its slopes. There are fewer than 2^32.
  __device__ __forceinline__ uint32_t place_of(int64_t i) const {
    if (one_sample) return static_cast<uint32_t>(i);
    const uint32_t pixel = static_cast<uint32_t>(i), side = static_cast<uint32_t>(S), n = pixel / side;
    return n * static_cast<uint32_t>(stride) + (pixel - n * side);
  }
};

// Pixels [begin, end) of a problem: whole tiles of it. Runs at its end may be empty.
struct Run {
  int64_t begin, end;
  __device__ __forceinline__ Run(int64_t pixels, int64_t runs, int64_t number) {
    const int64_t length = ((pixels + TILE - 1) / TILE + runs - 1) / runs * TILE;
    begin = number * length;
    end = min_(begin + length, pixels);
  }
};

// What a pass reads: first the keys of the pixels by index, later what the pass before has written.
template <typename T, bool FIRST>
struct Source {
  const Lot<T>& lot;
  const Key<T>* keys;
  const uint32_t* places;
  int64_t pixels;
  Key<T> least = 0;  // the smallest key with a weight

  __device__ __forceinline__ Source(const Lot<T>& lot, int64_t problem, int side)
      : lot(lot),
        keys(FIRST ? lot.slopes_of(problem) : lot.keys[side] + problem * lot.pixels),
        places(lot.places[side] + problem * lot.pixels) {
    const State& state = lot.state[problem];
    pixels = FIRST ? lot.pixels : static_cast<int64_t>(state.kept);
    if (FIRST) least = state.positives > 0 ? ~static_cast<Key<T>>(state.last) : static_cast<Key<T>>(state.most);
  }
  // The key of pixel i, NO_ERROR where it is dropped.
  __device__ __forceinline__ Key<T> key(int64_t i) const {
    const Key<T> key = keys[FIRST ? lot.place_of(i) : i];
    return !FIRST || (key | 1) >= least ? key : NO_ERROR<T>;
  }
};

template <typename T>
__device__ __forceinline__ bool is_kept(T key) {
  return key < static_cast<T>(~T(1));
}

template <typename N>
__device__ __forceinline__ N warp_max(N x) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x = max_(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}

// The sum of x over the threads before, and over all of them. scratch: a number for each warp.
template <typename N>
__device__ __forceinline__ N exclusive_sum(N x, N* scratch, N& all) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  N sum = x;
#pragma unroll
  for (int step = 1; step < WARP; step *= 2) {
    const N other = __shfl_up_sync(ALL_LANES, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == WARP - 1) scratch[warp] = sum;
  __syncthreads();
  N before = 0;
  all = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += scratch[w];
    all += scratch[w];
  }
  return before + sum - x;
}

// Counts positives and finds the keys that bound what is sorted. Grid: problems * runs.
template <typename T>
__global__ void __launch_bounds__(THREADS) survey(const __grid_constant__ Lot<T> lot) {
  using Number = unsigned long long;
  const int64_t problem = blockIdx.x / lot.runs;
  if (!lot.is_wanted(problem)) return;
  const Run run(lot.pixels, lot.runs, blockIdx.x % lot.runs);
  const Key<T>* keys = lot.slopes_of(problem);
  Key<T> last = 0, most = 0;
  uint32_t positives = 0;
#pragma unroll 4
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += THREADS) {
    const Key<T> key = keys[lot.place_of(i)];
    const bool positive = key & 1, kept = is_kept(key);
    if (kept) most = max_(most, key);
    if (positive) last = max_(last, kept ? static_cast<Key<T>>(~key) : static_cast<Key<T>>(~Key<T>(0)));
    positives += positive;
  }
  Number* warps = reinterpret_cast<Number*>(shared_memory());  // [WARPS, 3]
  const Number found[3] = {warp_max(last), warp_max(most), warp_sum(positives)};
  if (threadIdx.x % WARP == 0)
    for (int k = 0; k < 3; ++k) warps[threadIdx.x / WARP * 3 + k] = found[k];
  __syncthreads();
  if (threadIdx.x > 0) return;
  State& state = lot.state[problem];
  Number all_last = 0, all_most = 0, all_positives = 0;
  for (int w = 0; w < WARPS; ++w) {
    all_last = max_(all_last, warps[w * 3]);
    all_most = max_(all_most, warps[w * 3 + 1]);
    all_positives += warps[w * 3 + 2];
  }
  if (all_last > 0) atomicMax(&state.last, all_last);
  if (all_most > 0) atomicMax(&state.most, all_most);
  if (all_positives > 0) atomicAdd(&state.positives, all_positives);
}

// ------------------------------------------------------------------------------------------------ sorting

// Ascending digits are descending keys. The lowest bit says "positive" and is no part of the order.
template <typename T>
__device__ __forceinline__ int digit_of(T key, int shift) {
  return static_cast<int>(static_cast<T>(~key) >> shift) & (DIGITS - 1);
}

// Grid: problems * runs.
template <typename T, bool FIRST>
__global__ void __launch_bounds__(THREADS) count_digits(const __grid_constant__ Lot<T> lot, int side, int shift) {
  const int64_t problem = blockIdx.x / lot.runs;
  if (FIRST && lot.skips(problem)) return;
  const Source<T, FIRST> source(lot, problem, side);
  if (!FIRST && source.pixels == 0) return;
  const Run run(source.pixels, lot.runs, blockIdx.x % lot.runs);
  uint32_t* counts = reinterpret_cast<uint32_t*>(shared_memory());  // [DIGITS]
  counts[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 8
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += THREADS) {
    const Key<T> key = source.key(i);
    if (is_kept(key)) atomicAdd(&counts[digit_of(key, shift)], 1u);
  }
  __syncthreads();
  const uint32_t count = counts[threadIdx.x];
  lot.counts[static_cast<int64_t>(blockIdx.x) * DIGITS + threadIdx.x] = count;
  if (count > 0) atomicAdd(&lot.totals[problem * DIGITS + threadIdx.x], count);
}

// Turns the counts of runs into where they write. Grid: problems * parts. With one part a thread adds up the counts of
// a digit. With WARPS parts a block has WARP digits, and its warps share the runs.
template <typename T>
__global__ void __launch_bounds__(THREADS) scan_counts(const __grid_constant__ Lot<T> lot, int parts, bool first) {
  const int64_t problem = blockIdx.x / parts;
  const int part = blockIdx.x % parts, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  State& state = lot.state[problem];
  if (first ? lot.skips(problem) : state.kept == 0) return;
  uint32_t* starts = reinterpret_cast<uint32_t*>(shared_memory());  // [DIGITS]
  uint32_t* sums = starts + DIGITS;                                 // [THREADS]
  uint32_t* scratch = sums + THREADS;                               // [WARPS]
  uint32_t all;
  starts[threadIdx.x] = exclusive_sum(lot.totals[problem * DIGITS + threadIdx.x], scratch, all);
  const int digit = parts == 1 ? threadIdx.x : part * WARP + lane, slice = parts == 1 ? 0 : warp;
  const int64_t length = (lot.runs + parts - 1) / parts, begin = slice * length, end = min_(begin + length, lot.runs);
  uint32_t* counts = lot.counts + problem * lot.runs * DIGITS + digit;
  uint32_t sum = 0;
#pragma unroll 8
  for (int64_t r = begin; r < end; ++r) sum += counts[r * DIGITS];
  sums[threadIdx.x] = sum;
  __syncthreads();
  uint32_t at = starts[digit];
  for (int w = 0; w < slice; ++w) at += sums[w * WARP + lane];
#pragma unroll 8
  for (int64_t r = begin; r < end; ++r) {
    const uint32_t own = counts[r * DIGITS];
    counts[r * DIGITS] = at;
    at += own;
  }
  if (first && part == 0 && threadIdx.x == 0) state.kept = all;
}

// The lanes that are `kept` and have the same digit as this one.
__device__ __forceinline__ uint32_t same_digit(bool kept, int digit) {
  uint32_t peers = __ballot_sync(ALL_LANES, kept);
#pragma unroll
  for (int bit = 0; bit < DIGIT_BITS; ++bit) {
    const bool set = digit >> bit & 1;
    const uint32_t others = __ballot_sync(ALL_LANES, set);
    peers &= set ? others : ~others;
  }
  return peers;
}

template <typename T>
constexpr size_t SCATTER_SHARED =
    (WARPS * DIGITS + DIGITS + WARPS) * sizeof(uint32_t) + TILE * (sizeof(T) + sizeof(uint32_t));

// Writes the keys, and with PAIRS where their pixels lie, in the order of one digit; equal digits stay in their order.
// A tile is put in order in shared memory first, so that what a digit gets is written in one piece. The first pass
// clears the slopes as well. Grid: problems * runs.
template <typename T, bool FIRST, bool PAIRS>
__global__ void __launch_bounds__(THREADS, sizeof(T) == sizeof(float) ? 3 : 2)
    scatter(const __grid_constant__ Lot<T> lot, int side, int shift) {
  const int64_t problem = blockIdx.x / lot.runs, number = blockIdx.x % lot.runs;
  if (FIRST && lot.skips(problem)) {
    const Run run(lot.pixels, lot.runs, number);
    for (int64_t i = run.begin + threadIdx.x; PAIRS && i < run.end; i += THREADS)
      lot.slopes_of(problem)[lot.place_of(i)] = 0;
    return;
  }
  const Source<T, FIRST> source(lot, problem, side);
  const Run run(source.pixels, lot.runs, number);
  if (run.begin >= run.end) return;
  if (number == 0) lot.totals[problem * DIGITS + threadIdx.x] = 0;  // for the next pass
  const int target = FIRST ? 0 : 1 - side;
  Key<T>* const out = lot.keys[target] + problem * lot.pixels;
  uint32_t* const out_places = lot.places[target] + problem * lot.pixels;

  Key<T>* const staged = reinterpret_cast<Key<T>*>(shared_memory());           // [TILE]
  uint32_t* const staged_places = reinterpret_cast<uint32_t*>(staged + TILE);  // [TILE]
  uint32_t* const counts = staged_places + TILE;                               // [WARPS, DIGITS]
  uint32_t* const shifted = counts + WARPS * DIGITS;                           // [DIGITS]
  uint32_t* const scratch = shifted + DIGITS;                                  // [WARPS]
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const uint32_t lanes_below = (1u << lane) - 1;
  uint32_t* const own = counts + warp * DIGITS;
  uint32_t next = lot.counts[static_cast<int64_t>(blockIdx.x) * DIGITS + threadIdx.x];  // of digit threadIdx.x

  for (int64_t tile = run.begin; tile < run.end; tile += TILE) {
    // A warp has ITEMS rows of pixels in a piece.
    const int64_t first = tile + warp * ITEMS * WARP;
    const int rows = first >= run.end ? 0 : static_cast<int>(min_(int64_t(ITEMS), (run.end - first + WARP - 1) / WARP));
    Key<T> key[ITEMS];
    uint32_t place[ITEMS], rank[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int64_t i = first + k * WARP + lane;
      key[k] = i < run.end ? source.key(i) : NO_ERROR<T>;
      if (!FIRST && PAIRS) place[k] = i < run.end ? source.places[i] : 0;
      if (FIRST && PAIRS && i < run.end) lot.slopes_of(problem)[lot.place_of(i)] = 0;
    }
    for (int d = lane; d < DIGITS; d += WARP) own[d] = 0;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      if (k < rows) {
        const bool kept = is_kept(key[k]);
        const int digit = digit_of(key[k], shift);
        const uint32_t peers = same_digit(kept, digit), before = own[digit];
        const int below = __popc(peers & lanes_below);
        __syncwarp();
        if (kept && below == 0) own[digit] = before + __popc(peers);
        __syncwarp();
        rank[k] = before + below;
      }
    }
    __syncthreads();

    uint32_t total = 0, all;
    for (int w = 0; w < WARPS; ++w) {
      const uint32_t count = counts[w * DIGITS + threadIdx.x];
      counts[w * DIGITS + threadIdx.x] = total;
      total += count;
    }
    const uint32_t start = exclusive_sum(total, scratch, all);
    for (int w = 0; w < WARPS; ++w) counts[w * DIGITS + threadIdx.x] += start;
    shifted[threadIdx.x] = next - start;  // from a place in the tile to one in the problem, modulo 2^32
    next += total;
    __syncthreads();

#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      if (is_kept(key[k])) {
        const uint32_t at = own[digit_of(key[k], shift)] + rank[k];
        staged[at] = key[k];
        if (PAIRS) staged_places[at] = FIRST ? lot.place_of(first + k * WARP + lane) : place[k];
      }
    }
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < all; at += THREADS) {
      const Key<T> moved = staged[at];
      const uint32_t to = shifted[digit_of(moved, shift)] + at;
      out[to] = moved;
      if (PAIRS) out_places[to] = staged_places[at];
    }
  }
}

// ------------------------------------------------------------------------------------------------ weights

// The side that holds the sorted keys: a digit for each byte of a key.
constexpr int SORTED = 1;

// Grid: problems * tiles.
template <typename T>
__global__ void __launch_bounds__(THREADS) count_positives(const __grid_constant__ Lot<T> lot) {
  const int64_t problem = blockIdx.x / lot.tiles, begin = blockIdx.x % lot.tiles * TILE;
  const int64_t end = min_(begin + TILE, static_cast<int64_t>(lot.state[problem].kept));
  if (begin >= end) return;
  const Key<T>* keys = lot.keys[SORTED] + problem * lot.pixels;
  uint32_t positives = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int64_t i = begin + k * THREADS + threadIdx.x;
    if (i < end) positives += static_cast<uint32_t>(keys[i] & 1);
  }
  uint32_t* warps = reinterpret_cast<uint32_t*>(shared_memory());  // [WARPS]
  positives = warp_sum(positives);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = positives;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < WARPS; ++w) positives += warps[w];
  lot.tile_positives[blockIdx.x] = positives;
}

// Turns the positives of tiles into those of all tiles before. Grid: problems.
template <typename T>
__global__ void __launch_bounds__(THREADS) scan_positives(const __grid_constant__ Lot<T> lot) {
  uint32_t* scratch = reinterpret_cast<uint32_t*>(shared_memory());  // [WARPS]
  uint32_t* positives = lot.tile_positives + blockIdx.x * lot.tiles;
  const int64_t tiles = (static_cast<int64_t>(lot.state[blockIdx.x].kept) + TILE - 1) / TILE;
  uint32_t before = 0;
  for (int64_t first = 0; first < tiles; first += THREADS) {
    const int64_t i = first + threadIdx.x;
    uint32_t all;
    const uint32_t at = exclusive_sum(i < tiles ? positives[i] : 0u, scratch, all);
    if (i < tiles) positives[i] = before + at;
    before += all;
  }
}

// The loss of every tile, and with PAIRS the slopes. Grid: problems * tiles.
template <typename T, bool PAIRS>
__global__ void __launch_bounds__(THREADS) weigh(const __grid_constant__ Lot<T> lot) {
  const int64_t problem = blockIdx.x / lot.tiles, begin = blockIdx.x % lot.tiles * TILE;
  const State& state = lot.state[problem];
  const int64_t end = min_(begin + TILE, static_cast<int64_t>(state.kept));
  if (begin >= end) return;
  const Key<T>* keys = lot.keys[SORTED] + problem * lot.pixels;
  const uint32_t* places = lot.places[SORTED] + problem * lot.pixels;
  Key<T>* const slopes = lot.slopes_of(problem);
  const bool broken = lot.is_broken(problem);
  double* sums = reinterpret_cast<double*>(shared_memory());    // [WARPS]
  uint32_t* warps = reinterpret_cast<uint32_t*>(sums + WARPS);  // [WARPS]
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int64_t first = begin + warp * ITEMS * WARP;

  Key<T> key[ITEMS];
  uint32_t positive[ITEMS], found = 0;  // which lanes of a row are positive
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int64_t i = first + k * WARP + lane;
    key[k] = i < end ? keys[i] : 0;
  }
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    positive[k] = first + k * WARP < end ? __ballot_sync(ALL_LANES, static_cast<int>(key[k] & 1)) : 0;
    found += __popc(positive[k]);
  }
  if (lane == 0) warps[warp] = found;
  __syncthreads();
  uint32_t before = lot.tile_positives[blockIdx.x];
  for (int w = 0; w < warp; ++w) before += warps[w];

  const double G = static_cast<double>(state.positives);
  double sum = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; ++k) {
    const int64_t i = first + k * WARP + lane;
    const uint32_t F = before + __popc(positive[k] & ((1u << lane) - 1));
    before += __popc(positive[k]);
    if (i >= end) continue;
    const bool own = key[k] & 1;
    const double weight = jaccard_step(own, G, F, static_cast<uint32_t>(i) - F);
    const T error = error_of(key[k]);
    if (weight > 0) sum += static_cast<double>(error) * weight;
    if (!PAIRS) continue;
    T slope = static_cast<T>(own ? -weight : weight);
    if (error != error) slope = error;
    if (broken) slope = static_cast<T>(NAN);
    if (slope != T(0)) slopes[places[i]] = bits_of(slope);
  }
  sum = warp_sum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < WARPS; ++w) sum += sums[w];
  lot.tile_sum[blockIdx.x] = sum;
}

// value and positives [rows, C] of the lot, a warp for each problem. Grid: problems / WARPS.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    finish(const __grid_constant__ Lot<T> lot, double* value, double* positives) {
  const int64_t problem = blockIdx.x * static_cast<int64_t>(WARPS) + threadIdx.x / WARP;
  if (problem >= lot.problems) return;  // the whole warp
  const State& state = lot.state[problem];
  const int64_t tiles = (static_cast<int64_t>(state.kept) + TILE - 1) / TILE;
  double sum = 0;
  for (int64_t i = threadIdx.x % WARP; i < tiles; i += WARP) sum += lot.tile_sum[problem * lot.tiles + i];
  sum = warp_sum(sum);
  if (threadIdx.x % WARP > 0) return;
  const int64_t at = problem / lot.classes * lot.C + lot.first + problem % lot.classes;
  value[at] = lot.is_broken(problem) ? static_cast<double>(NAN) : sum;
  positives[at] = static_cast<double>(state.positives);
}

// ------------------------------------------------------------------------------------------------ gradient

// Where the slope of a pixel is all that its gradient takes: hinge, or given probabilities. Grid: N * C * tiles.
template <typename Storage>
__global__ void __launch_bounds__(THREADS)
    element_gradient(const __grid_constant__ LovaszExtension problem, const double* coefficient, int64_t tiles) {
  using T = typename Compute<Storage>::Type;
  const PixelStats& op = problem.pass;
  const int64_t plane = blockIdx.x / tiles, n = plane / op.C, c = plane % op.C;
  const int64_t begin = blockIdx.x % tiles * ELEMENT_TILE, end = min_(begin + ELEMENT_TILE, op.S);
  const T* slopes = static_cast<const T*>(problem.slope) + slope_at(problem, n, c, 0);
  const T k = static_cast<T>(coefficient[(problem.per_image ? n * op.C : 0) + c]);
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    const T slope = slopes[i];
    T out = k * slope;
    if (problem.hinge && op.activation == IDENTITY) {
      const T p = logit<Storage>(op, n, c, i, false), q = T(1) - p;
      out *= (p < CLAMP<T> ? T(0) : T(1) / p) + (q < CLAMP<T> ? T(0) : T(1) / q);
    }
    store<Storage>(op, n, c, i, false, slope == T(0) ? T(0) : out);
  }
}

// dL/dz_k = p_k (g_k - sum_c g_c p_c) with g = dL/dp, which is 0 for every class of an ignored pixel.
// Grid: N * tiles. Shared: coefficients T [C] and columns T [C, PIXEL_THREADS], where there is room.
template <typename Storage>
__global__ void __launch_bounds__(PIXEL_THREADS, 4)
    softmax_gradient(const __grid_constant__ LovaszExtension problem, const double* coefficient, int64_t tiles,
                     bool columns) {
  using T = typename Compute<Storage>::Type;
  const PixelStats& op = problem.pass;
  const int64_t n = blockIdx.x / tiles, i = blockIdx.x % tiles * PIXEL_THREADS + threadIdx.x;
  const double* own = coefficient + (problem.per_image ? n * op.C : 0);
  T* const table = reinterpret_cast<T*>(shared_memory());
  for (int64_t c = threadIdx.x; columns && c < op.C; c += PIXEL_THREADS) table[c] = static_cast<T>(own[c]);
  __syncthreads();
  if (i >= op.S) return;
  auto k = [&](int64_t c) { return columns ? table[c] : static_cast<T>(own[c]); };
  const T* slopes = static_cast<const T*>(problem.slope) + slope_at(problem, n, 0, i);
  T dot = T(0);
  bool any = false;
  const Probabilities<Storage> p(op, n, i, columns ? table + op.C + threadIdx.x : nullptr, [&](int64_t c, T e) {
    const T slope = slopes[c * op.S];
    any = any || slope != T(0);
    dot += k(c) * slope * e;
  });
  dot *= p.inverse;
#pragma unroll 4
  for (int64_t c = 0; c < op.C; ++c) {
    const T out = p(c) * (k(c) * slopes[c * op.S] - dot);
    store<Storage>(op, n, c, i, false, any ? out : T(0));
  }
}

// ------------------------------------------------------------------------------------------------ launches

template <typename T>
bool has_columns(const PixelStats& op) {
  return (PIXEL_THREADS + 1) * op.C * static_cast<int64_t>(sizeof(T)) <= COLUMN_ROOM;
}

// How many classes are sorted at a time.
int64_t lot_classes(const LovaszExtension& op) {
  const int64_t rows = op.per_image ? op.pass.N : 1, pixels = op.pass.S * (op.per_image ? 1 : op.pass.N);
  const int64_t fit = LOT / max_(rows * max_(pixels, TILE), int64_t(1));
  return max_(min_(min_(fit, LOT_CLASSES), op.classes), int64_t(1));
}

int64_t problems_of(const LovaszExtension& op) { return (op.per_image ? op.pass.N : 1) * op.pass.C; }

// Room for the flags of broken problems in front of a lot's.
int64_t flag_bytes(const LovaszExtension& op) {
  return ceil_div(problems_of(op) * static_cast<int64_t>(sizeof(uint32_t)), 16) * 16;
}

template <typename Storage>
cudaError_t make_keys(const LovaszExtension& op, uint32_t* broken, cudaStream_t stream) {
  using T = typename Compute<Storage>::Type;
  if (op.hinge) {
    const int64_t tiles = ceil_div(op.pass.S, ELEMENT_TILE);
    return launch(hinge_keys<Storage>, static_cast<unsigned>(op.pass.N * op.classes * tiles), THREADS, 0, stream, op,
                  broken, tiles);
  }
  const int64_t tiles = ceil_div(op.pass.S, PIXEL_THREADS);
  const bool columns = has_columns<T>(op.pass);
  return launch(pixel_keys<Storage>, static_cast<unsigned>(op.pass.N * tiles), PIXEL_THREADS,
                columns ? PIXEL_THREADS * op.pass.C * sizeof(T) : 0, stream, op, broken, tiles, columns);
}

template <typename T, bool FIRST>
cudaError_t pass(const Lot<T>& lot, int side, int shift, cudaStream_t stream) {
  const unsigned runs = static_cast<unsigned>(lot.problems * lot.runs), problems = static_cast<unsigned>(lot.problems);
  const int parts = lot.runs > FEW_RUNS ? WARPS : 1;
  const size_t scan = (DIGITS + THREADS + WARPS) * sizeof(uint32_t);
  SEGFUSE_TRY(launch(count_digits<T, FIRST>, runs, THREADS, DIGITS * sizeof(uint32_t), stream, lot, side, shift));
  SEGFUSE_TRY(launch(scan_counts<T>, problems * parts, THREADS, scan, stream, lot, parts, FIRST));
  if (lot.pairs) return launch(scatter<T, FIRST, true>, runs, THREADS, SCATTER_SHARED<T>, stream, lot, side, shift);
  return launch(scatter<T, FIRST, false>, runs, THREADS, SCATTER_SHARED<T>, stream, lot, side, shift);
}

template <typename T>
cudaError_t sort_and_weigh(const Lot<T>& lot, double* value, double* positives, cudaStream_t stream) {
  const unsigned problems = static_cast<unsigned>(lot.problems),
                 tiles = static_cast<unsigned>(lot.problems * lot.tiles);
  SEGFUSE_TRY(cudaMemsetAsync(lot.state, 0, lot.cleared, stream));
  if (lot.any_wanted()) {
    SEGFUSE_TRY(launch(survey<T>, static_cast<unsigned>(lot.problems * lot.runs), THREADS,
                       WARPS * 3 * sizeof(unsigned long long), stream, lot));
    SEGFUSE_TRY(pass<T, true>(lot, 0, 1, stream));
    for (int k = 1; k < static_cast<int>(sizeof(T)); ++k)
      SEGFUSE_TRY(pass<T, false>(lot, (k - 1) % 2, 1 + k * DIGIT_BITS, stream));
    const size_t counts = WARPS * sizeof(uint32_t), sums = WARPS * sizeof(double);
    SEGFUSE_TRY(launch(count_positives<T>, tiles, THREADS, counts, stream, lot));
    SEGFUSE_TRY(launch(scan_positives<T>, problems, THREADS, counts, stream, lot));
    SEGFUSE_TRY(lot.pairs ? launch(weigh<T, true>, tiles, THREADS, sums + counts, stream, lot)
                          : launch(weigh<T, false>, tiles, THREADS, sums + counts, stream, lot));
  } else if (lot.pairs) {  // its first pass clears the slopes
    SEGFUSE_TRY(launch(scatter<T, true, true>, static_cast<unsigned>(lot.problems * lot.runs), THREADS,
                       SCATTER_SHARED<T>, stream, lot, 0, 1));
  }
  return launch(finish<T>, static_cast<unsigned>(ceil_div(lot.problems, WARPS)), THREADS, 0, stream, lot, value,
                positives);
}

template <typename Storage>
cudaError_t forward(const LovaszExtension& op, double* value, double* positives, char* workspace, cudaStream_t stream) {
  using T = typename Compute<Storage>::Type;
  uint32_t* broken = reinterpret_cast<uint32_t*>(workspace);
  SEGFUSE_TRY(cudaMemsetAsync(broken, 0, flag_bytes(op), stream));
  LovaszExtension part = op;
  const int64_t step = lot_classes(op);
  for (part.first = 0; part.first < op.pass.C; part.first += op.classes) {
    part.classes = min_(op.classes, op.pass.C - part.first);
    SEGFUSE_TRY(make_keys<Storage>(part, broken, stream));
    for (int64_t c = 0; c < part.classes; c += step) {
      Lot<T> lot(part, part.first + c, min_(step, part.classes - c), workspace + flag_bytes(op));
      lot.broken = broken;
      SEGFUSE_TRY(sort_and_weigh(lot, value, positives, stream));
    }
  }
  return cudaSuccess;
}

}  // namespace

namespace cuda {

int64_t lovasz_extension_workspace(const LovaszExtension& op) {
  const int64_t classes = lot_classes(op);
  return flag_bytes(op) + (op.pass.input.dtype == F64 ? Lot<double>(op, op.first, classes, nullptr).bytes
                                                      : Lot<float>(op, op.first, classes, nullptr).bytes);
}

cudaError_t lovasz_extension_forward(const LovaszExtension& op, double* value, double* positives, void* workspace,
                                     cudaStream_t stream) {
  SEGFUSE_WITH_STORAGE(op.pass.input.dtype,
                       { return forward<Storage>(op, value, positives, static_cast<char*>(workspace), stream); })
  return cudaSuccess;
}

cudaError_t lovasz_extension_backward(const LovaszExtension& op, const double* coefficient, cudaStream_t stream) {
  SEGFUSE_WITH_STORAGE(op.pass.input.dtype, {
    using T = typename Compute<Storage>::Type;
    if (op.pass.activation != SOFTMAX) {
      const int64_t tiles = ceil_div(op.pass.S, ELEMENT_TILE);
      return launch(element_gradient<Storage>, static_cast<unsigned>(op.pass.N * op.pass.C * tiles), THREADS, 0, stream,
                    op, coefficient, tiles);
    }
    const int64_t tiles = ceil_div(op.pass.S, PIXEL_THREADS);
    const bool columns = has_columns<T>(op.pass);
    return launch(softmax_gradient<Storage>, static_cast<unsigned>(op.pass.N * tiles), PIXEL_THREADS,
                  columns ? (PIXEL_THREADS + 1) * op.pass.C * sizeof(T) : 0, stream, op, coefficient, tiles, columns);
  })
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace segfuse
