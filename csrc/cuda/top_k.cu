// The k percent largest of every row on a GPU, by a radix select: the digits of the smallest value kept, highest first.
//
// Memory: a read of the values for every digit (4 of float, 8 of double) and two more, and one write of the marks. Only
//         counts beside it.
// Order:  equal values by ascending index, NaN before everything. Counts are whole numbers, sums are added by index.
#include "../segfuse_cuda.h"
#include "launch.cuh"

namespace segfuse {
namespace {

constexpr int THREADS = 256;
constexpr int DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS;
constexpr int64_t RUN = 64 * THREADS;  // values of a block

// Unsigned numbers in the order of the values.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = as_bits(x + 0.0f);  // -0 equals 0
  if (x != x) return ~uint32_t(0);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t ordered(double x) {
  x += 0.0;
  uint64_t bits;
  memcpy(&bits, &x, 8);
  if (x != x) return ~uint64_t(0);
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

struct RowState {
  uint64_t least;             // the digits found so far of the smallest value kept
  unsigned long long left;    // how many of those that begin with them are kept
  unsigned long long wanted;  // how many values are kept
};

// Of every row: counts of a digit, its state, and for each run the values equal to the least, then the sum.
struct Workspace {
  unsigned long long* counts;  // [rows, DIGITS]
  RowState* state;             // [rows]
  unsigned long long* equal;   // [rows, runs]
  double* sum;                 // [rows, runs]

  static int64_t runs(const TopK& op) { return (op.length + RUN - 1) / RUN; }
  static int64_t bytes(const TopK& op) {
    return op.rows * static_cast<int64_t>(DIGITS * 8 + sizeof(RowState) + runs(op) * 16);
  }
  Workspace(const TopK& op, void* memory) {
    counts = static_cast<unsigned long long*>(memory);
    state = reinterpret_cast<RowState*>(counts + op.rows * DIGITS);
    equal = reinterpret_cast<unsigned long long*>(state + op.rows);
    sum = reinterpret_cast<double*>(equal + op.rows * runs(op));
  }
};

template <typename T>
struct Run {
  int64_t row, number, begin, end;
  const T* values;
  const uint8_t* valid;
  __device__ Run(const TopK& op, int64_t runs) : row(blockIdx.x / runs), number(blockIdx.x % runs) {
    begin = number * RUN;
    end = min_(begin + RUN, op.length);
    values = static_cast<const T*>(op.values) + row * op.length;
    valid = op.valid == nullptr ? nullptr : op.valid + row * op.length;
  }
  __device__ bool takes_part(int64_t i) const { return valid == nullptr || valid[i] != 0; }
};

// Counts the digit at `shift` of the values that begin like the least. Grid: rows * runs.
template <typename T>
__global__ void __launch_bounds__(THREADS) count_digit(TopK op, Workspace work, int64_t runs, int shift) {
  unsigned* counts = reinterpret_cast<unsigned*>(shared_memory());
  const Run<T> run(op, runs);
  for (int d = threadIdx.x; d < DIGITS; d += THREADS) counts[d] = 0;
  __syncthreads();
  const int above = shift + DIGIT_BITS;
  const bool first = above == 8 * sizeof(T);
  const uint64_t known = first ? 0 : work.state[run.row].least >> above;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += THREADS) {
    if (!run.takes_part(i)) continue;
    const uint64_t key = ordered(run.values[i]);
    if (first || key >> above == known) atomicAdd(&counts[(key >> shift) & (DIGITS - 1)], 1u);
  }
  __syncthreads();
  for (int d = threadIdx.x; d < DIGITS; d += THREADS)
    if (counts[d] > 0) atomicAdd(&work.counts[run.row * DIGITS + d], static_cast<unsigned long long>(counts[d]));
}

// Takes the digit of the least value, and clears the counts. Grid: rows.
__global__ void __launch_bounds__(DIGITS) take_digit(Workspace work, double percent, int shift, bool first) {
  unsigned long long* counts = reinterpret_cast<unsigned long long*>(shared_memory());
  const int64_t row = blockIdx.x;
  counts[threadIdx.x] = work.counts[row * DIGITS + threadIdx.x];
  work.counts[row * DIGITS + threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x > 0) return;
  RowState state = work.state[row];
  if (first) {
    unsigned long long valid = 0;
    for (int d = 0; d < DIGITS; ++d) valid += counts[d];
    const double share = floor(static_cast<double>(valid) * percent / 100);
    state.wanted = valid == 0 ? 0 : (share < 1 ? 1 : static_cast<unsigned long long>(share));
    state.left = state.wanted;
    state.least = 0;
  }
  int digit = DIGITS - 1;
  while (digit > 0 && counts[digit] < state.left) state.left -= counts[digit--];
  state.least |= static_cast<uint64_t>(digit) << shift;
  work.state[row] = state;
}

// Counts the values equal to the least in every run. Grid: rows * runs.
template <typename T>
__global__ void __launch_bounds__(THREADS) count_equal(TopK op, Workspace work, int64_t runs) {
  unsigned* warps = reinterpret_cast<unsigned*>(shared_memory());
  const Run<T> run(op, runs);
  const uint64_t least = work.state[run.row].least;
  unsigned equal = 0;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += THREADS)
    equal += run.takes_part(i) && ordered(run.values[i]) == least;
  equal = warp_sum(equal);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = equal;
  __syncthreads();
  if (threadIdx.x > 0) return;
  unsigned long long total = 0;
  for (int w = 0; w < THREADS / WARP; ++w) total += warps[w];
  work.equal[run.row * runs + run.number] = total;
}

// Turns the counts of runs into those of all runs before. Grid: rows.
__global__ void __launch_bounds__(WARP) add_up_equal(Workspace work, int64_t runs) {
  unsigned long long* equal = work.equal + blockIdx.x * runs;
  const int lane = threadIdx.x;
  unsigned long long before = 0;
  for (int64_t first = 0; first < runs; first += WARP) {
    const int64_t i = first + lane;
    const unsigned long long own = i < runs ? equal[i] : 0;
    unsigned long long sum = own;
    for (int step = 1; step < WARP; step *= 2) {
      const unsigned long long other = __shfl_up_sync(ALL_LANES, sum, step);
      if (lane >= step) sum += other;
    }
    if (i < runs) equal[i] = before + sum - own;
    before += __shfl_sync(ALL_LANES, sum, WARP - 1);
  }
}

// Marks what is greater than the least, and the first of those equal. Grid: rows * runs.
template <typename T>
__global__ void __launch_bounds__(THREADS) mark(TopK op, Workspace work, int64_t runs) {
  double* sums = reinterpret_cast<double*>(shared_memory());             // [warps]
  unsigned* equal = reinterpret_cast<unsigned*>(sums + THREADS / WARP);  // [warps]
  const Run<T> run(op, runs);
  const RowState state = work.state[run.row];
  unsigned long long before = work.equal[run.row * runs + run.number];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  double sum = 0;
  for (int64_t first = run.begin; first < run.end; first += THREADS) {
    const int64_t i = first + threadIdx.x;
    const bool there = i < run.end && run.takes_part(i);
    const T value = i < run.end ? run.values[i] : T(0);
    const uint64_t key = ordered(value);
    const bool tie = there && key == state.least;
    const uint32_t ties = __ballot_sync(ALL_LANES, tie);
    __syncthreads();
    if (lane == 0) equal[warp] = __popc(ties);
    __syncthreads();
    unsigned long long rank = before + __popc(ties & ((1u << lane) - 1));
    for (int w = 0; w < THREADS / WARP; ++w) {
      if (w < warp) rank += equal[w];
      before += equal[w];
    }
    const bool keep = state.wanted > 0 && ((there && key > state.least) || (tie && rank < state.left));
    if (i < run.end) op.chosen[run.row * op.length + i] = keep;
    if (keep) sum += static_cast<double>(value);
  }
  sum = warp_sum(sum);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double total = 0;
  for (int w = 0; w < THREADS / WARP; ++w) total += sums[w];
  work.sum[run.row * runs + run.number] = total;
}

// Grid: rows.
__global__ void __launch_bounds__(WARP) add_up_sums(Workspace work, int64_t runs, double* sum, double* count) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < runs; i += WARP) total += work.sum[blockIdx.x * runs + i];
  total = warp_sum(total);
  if (threadIdx.x > 0) return;
  sum[blockIdx.x] = total;
  count[blockIdx.x] = static_cast<double>(work.state[blockIdx.x].wanted);
}

template <typename T>
cudaError_t select(const TopK& op, const Workspace& work, double* sum, double* count, cudaStream_t stream) {
  const int64_t runs = Workspace::runs(op);
  const unsigned rows = static_cast<unsigned>(op.rows), all = static_cast<unsigned>(op.rows * runs);
  for (int shift = 8 * sizeof(T) - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    SEGFUSE_TRY(launch(count_digit<T>, all, THREADS, DIGITS * sizeof(unsigned), stream, op, work, runs, shift));
    SEGFUSE_TRY(launch(take_digit, rows, DIGITS, DIGITS * sizeof(unsigned long long), stream, work, op.percent, shift,
                       shift == 8 * sizeof(T) - DIGIT_BITS));
  }
  const size_t warps = THREADS / WARP;
  SEGFUSE_TRY(launch(count_equal<T>, all, THREADS, warps * sizeof(unsigned), stream, op, work, runs));
  SEGFUSE_TRY(launch(add_up_equal, rows, WARP, 0, stream, work, runs));
  SEGFUSE_TRY(launch(mark<T>, all, THREADS, warps * (sizeof(double) + sizeof(unsigned)), stream, op, work, runs));
  return launch(add_up_sums, rows, WARP, 0, stream, work, runs, sum, count);
}

}  // namespace

namespace cuda {

int64_t top_k_workspace(const TopK& op) { return Workspace::bytes(op); }

cudaError_t top_k_forward(const TopK& op, double* sum, double* count, void* workspace, cudaStream_t stream) {
  const Workspace work(op, workspace);
  SEGFUSE_TRY(cudaMemsetAsync(work.counts, 0, op.rows * DIGITS * sizeof(unsigned long long), stream));
  return op.dtype == F64 ? select<double>(op, work, sum, count, stream) : select<float>(op, work, sum, count, stream);
}

}  // namespace cuda
}  // namespace segfuse
