// The k percent largest of every row, by a radix select: the digits of the smallest one kept, highest first.
//
// Memory:  the values that begin with the digit of the smallest one kept, and counts of a digit for every run.
// Order:   equal values by ascending index, NaN before everything. Runs are cut by the length of the row alone and
//          added in order, so the bits do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../segfuse.h"
#include "threads.h"

namespace segfuse {
namespace {

constexpr int DIGIT_BITS = 11;
constexpr int64_t DIGITS = 1 << DIGIT_BITS;
constexpr int64_t RUN = 1 << 16, MOST_RUNS = 64;  // values
constexpr int64_t SERIAL = 1 << 15;               // values; below this a second thread costs more than it brings

// Unsigned numbers in the order of the values.
inline uint32_t ordered(float x) {
  x += 0.0f;  // -0 equals 0
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return ~uint32_t(0);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline uint64_t ordered(double x) {
  x += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  if (x != x) return ~uint64_t(0);
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

template <typename T>
using Key = decltype(ordered(T()));

// The loops over one run. By value, so that nothing has to be read again for every pixel.
template <typename T>
struct Row {
  const T* values;
  const uint8_t* valid;  // nullptr: all
  uint8_t* chosen;
  int64_t length;

  bool takes_part(int64_t i) const { return valid == nullptr || valid[i] != 0; }

  void count(int64_t begin, int64_t end, int shift, uint32_t* counts) const {
    const T* x = values;
    const uint8_t* m = valid;
    if (m == nullptr)
      for (int64_t i = begin; i < end; ++i) ++counts[ordered(x[i]) >> shift];
    else
      for (int64_t i = begin; i < end; ++i) counts[ordered(x[i]) >> shift] += m[i] != 0;
  }

  // Keys that begin like `known`, in order; writes one place too many.
  void gather(int64_t begin, int64_t end, int shift, Key<T> known, Key<T>* to) const {
    const Row row = *this;
    for (int64_t i = begin; i < end; ++i) {
      const Key<T> key = ordered(row.values[i]);
      *to = key;
      to += row.takes_part(i) & (key >> shift == known);
    }
  }

  // Chooses what begins with more than `known`, with `all` also what begins like it. Returns the sum.
  double mark(int64_t begin, int64_t end, int shift, Key<T> known, bool all) const {
    const T* __restrict x = values;
    const uint8_t* __restrict m = valid == nullptr ? reinterpret_cast<const uint8_t*>(values) : valid;
    uint8_t* __restrict out = chosen;
    const bool every = valid == nullptr;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const Key<T> key = ordered(x[i]) >> shift;
      const bool keep = (every | (m[i] != 0)) & ((key > known) | (all & (key == known)));
      out[i] = keep;
      sum += keep ? static_cast<double>(x[i]) : 0;
    }
    return sum;
  }
};

// Returns the sum of the chosen values; `wanted` is set to their number.
template <typename T>
double select(const Row<T>& row, double percent, int64_t& wanted, int threads) {
  const int64_t runs = std::clamp<int64_t>((row.length + RUN - 1) / RUN, 1, MOST_RUNS);
  const int64_t run = (row.length + runs - 1) / runs;
  if (row.length < SERIAL) threads = 1;
  auto for_each_run = [&](auto body) {
    parallel(runs, threads, [&](auto&& next) {
      for (int64_t r; (r = next()) < runs;) body(r, std::min(r * run, row.length), std::min((r + 1) * run, row.length));
    });
  };

  // 1. The highest digit of every value.
  int shift = 8 * sizeof(T) - DIGIT_BITS;
  std::vector<uint32_t> counts(runs * DIGITS);
  for_each_run(
      [&](int64_t r, int64_t begin, int64_t end) { row.count(begin, end, shift, counts.data() + r * DIGITS); });
  int64_t valid = 0;
  for (uint32_t count : counts) valid += count;
  wanted = valid == 0 ? 0 : std::max<int64_t>(1, static_cast<int64_t>(std::floor(valid * percent / 100)));
  if (wanted == 0) {
    std::fill(row.chosen, row.chosen + row.length, 0);
    return 0;
  }

  // 2. The digit of the smallest value kept; `left` of the `alike` that have it are kept. before: of those, how many
  // lie in earlier runs.
  Key<T> least = 0;
  int64_t left = wanted, alike = 0;
  std::vector<int64_t> before(runs + 1);
  auto take_digit = [&](int64_t digits) {
    auto total = [&](int64_t digit) {
      int64_t sum = 0;
      for (int64_t r = 0; r < runs; ++r) sum += counts[r * DIGITS + digit];
      return sum;
    };
    int64_t digit = digits - 1;
    for (alike = total(digit); alike < left; alike = total(--digit)) left -= alike;
    for (int64_t r = 0; r < runs; ++r) before[r + 1] = before[r] + counts[r * DIGITS + digit];
    least |= static_cast<Key<T>>(digit) << shift;
  };
  take_digit(DIGITS);

  // 3. Those alike, with a place to spare for each run; their other digits.
  if (alike > left) {
    const std::vector<int64_t> first = before;
    std::vector<Key<T>> keys(alike + runs);
    for_each_run([&](int64_t r, int64_t begin, int64_t end) {
      row.gather(begin, end, shift, least >> shift, keys.data() + first[r] + r);
    });
    while (alike > left && shift > 0) {
      const int above = shift;
      shift = std::max(0, above - DIGIT_BITS);
      const Key<T> digits = Key<T>(1) << (above - shift);
      std::fill(counts.begin(), counts.end(), 0);
      for_each_run([&](int64_t r, int64_t, int64_t) {
        uint32_t* own = counts.data() + r * DIGITS;
        for (int64_t i = first[r]; i < first[r + 1]; ++i) {
          const Key<T> key = keys[i + r];
          own[(key >> shift) & (digits - 1)] += key >> above == least >> above;
        }
      });
      take_digit(static_cast<int64_t>(digits));
    }
  }

  // 4. Everything above, and the first of those equal.
  const Key<T> known = least >> shift;
  const bool all = alike == left;
  std::vector<double> sums(runs);
  for_each_run([&](int64_t r, int64_t begin, int64_t end) {
    double part = row.mark(begin, end, shift, known, all);
    int64_t ties = all ? 0 : std::min(before[r + 1], left) - before[r];
    for (int64_t i = begin; ties > 0; ++i) {
      if (!row.takes_part(i) || ordered(row.values[i]) >> shift != known) continue;
      row.chosen[i] = 1;
      part += static_cast<double>(row.values[i]);
      --ties;
    }
    sums[r] = part;
  });
  double value = 0;
  for (double part : sums) value += part;
  return value;
}

}  // namespace

void top_k_forward(const TopK& op, double* sum, double* count, int threads) {
  for (int64_t r = 0; r < op.rows; ++r) {
    const int64_t at = r * op.length;
    const uint8_t* valid = op.valid == nullptr ? nullptr : op.valid + at;
    int64_t wanted = 0;
    if (op.dtype == F64)
      sum[r] = select<double>({static_cast<const double*>(op.values) + at, valid, op.chosen + at, op.length},
                              op.percent, wanted, threads);
    else
      sum[r] = select<float>({static_cast<const float*>(op.values) + at, valid, op.chosen + at, op.length}, op.percent,
                             wanted, threads);
    count[r] = static_cast<double>(wanted);
  }
}

}  // namespace segfuse
