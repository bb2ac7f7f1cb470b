// The k percent largest of every row, by a radix select: the digits of the smallest one kept, highest first.
//
// Memory:  counts of one digit for every run; the values are read once for each digit and once to mark them.
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
struct Row {
  const T* values;
  const uint8_t* valid;  // nullptr: all
  uint8_t* chosen;
  int64_t length;

  template <typename F>
  void each(int64_t begin, int64_t end, F f) const {
    if (valid == nullptr) {
      for (int64_t i = begin; i < end; ++i) f(i, ordered(values[i]));
    } else {
      for (int64_t i = begin; i < end; ++i)
        if (valid[i]) f(i, ordered(values[i]));
    }
  }
};

// Returns the sum of the chosen values; `wanted` is set to their number.
template <typename T>
double select(const Row<T>& row, double percent, int64_t& wanted, int threads) {
  using Key = decltype(ordered(T()));
  constexpr int BITS = 8 * sizeof(T);
  const int64_t runs = std::clamp<int64_t>((row.length + RUN - 1) / RUN, 1, MOST_RUNS);
  const int64_t run = (row.length + runs - 1) / runs;
  if (row.length < SERIAL) threads = 1;
  auto for_each_run = [&](auto body) {
    parallel(runs, threads, [&](auto&& next) {
      for (int64_t r; (r = next()) < runs;) body(r, std::min(r * run, row.length), std::min((r + 1) * run, row.length));
    });
  };

  // `least` holds the digits known so far of the smallest value kept; `left` of those that begin like it are kept.
  Key least = 0;
  int64_t left = 0;
  int above = BITS;
  std::vector<uint32_t> counts(runs * DIGITS);
  std::vector<int64_t> before(runs);  // in earlier runs: values that begin like `least`
  while (above > 0) {
    const int shift = std::max(0, above - DIGIT_BITS);
    const Key mask = (Key(1) << (above - shift)) - 1;
    const bool first = above == BITS;
    std::fill(counts.begin(), counts.end(), 0);
    for_each_run([&](int64_t r, int64_t begin, int64_t end) {
      uint32_t* own = counts.data() + r * DIGITS;
      const Key known = first ? 0 : least >> above;
      if (first)
        row.each(begin, end, [=](int64_t, Key key) { ++own[key >> shift]; });
      else
        row.each(begin, end, [=](int64_t, Key key) {
          if (key >> above == known) ++own[(key >> shift) & mask];
        });
    });
    auto total = [&](int64_t digit) {
      int64_t sum = 0;
      for (int64_t r = 0; r < runs; ++r) sum += counts[r * DIGITS + digit];
      return sum;
    };
    if (first) {
      int64_t valid = 0;
      for (uint32_t count : counts) valid += count;
      wanted = valid == 0 ? 0 : std::max<int64_t>(1, static_cast<int64_t>(std::floor(valid * percent / 100)));
      left = wanted;
      if (wanted == 0) break;
    }
    int64_t digit = static_cast<int64_t>(mask), here = total(digit);
    while (here < left) {
      left -= here;
      here = total(--digit);
    }
    least |= static_cast<Key>(digit) << shift;
    above = shift;
    int64_t sum = 0;
    for (int64_t r = 0; r < runs; ++r) {
      before[r] = sum;
      sum += counts[r * DIGITS + digit];
    }
    if (here == left) break;  // all that begin like this
  }

  std::vector<double> sums(runs);
  for_each_run([&](int64_t r, int64_t begin, int64_t end) {
    int64_t ties = before[r];
    double part = 0;
    std::fill(row.chosen + begin, row.chosen + end, 0);
    if (wanted > 0)
      row.each(begin, end, [&](int64_t i, Key key) {
        const Key known = key >> above;
        const bool keep = known > least >> above || (known == least >> above && ties++ < left);
        row.chosen[i] = keep;
        part += keep ? static_cast<double>(row.values[i]) : 0;
      });
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
