// Cuts pixel_stats into chunks, runs them on threads and adds their sums in chunk order.
//
// The number of chunks depends on the shape alone, so the bits do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <unordered_map>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace segfuse {
namespace {

constexpr int64_t CHUNKS = 128;               // enough to balance any number of threads
constexpr int64_t PARTIAL_BYTES = 1 << 20;    // of all chunks together
constexpr int64_t SERIAL_ELEMENTS = 1 << 15;  // for each further thread; with fewer it costs more than it brings

struct Chunks {
  int64_t planes, classes, per_plane, length, row;
  Chunks(const PixelStats& op, const PixelStatsKernels& k) {
    const bool softmax = op.activation == SOFTMAX;
    classes = softmax ? 1 : op.C;
    planes = op.N * classes;
    row = op.rows * (softmax ? op.C : 1);
    const int64_t tile = k.tile(op), tiles = (op.S + tile - 1) / tile;
    const int64_t room = PARTIAL_BYTES / (8 * std::max<int64_t>(row, 1));
    const int64_t most = std::max<int64_t>(1, std::min(CHUNKS, room) / std::max<int64_t>(planes, 1));
    length = std::max<int64_t>(1, (tiles + most - 1) / most) * tile;
    per_plane = (op.S + length - 1) / length;
  }
  int64_t total() const { return planes * per_plane; }
};

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

// body(n, c, begin, end, chunk, scratch) for every chunk, each on one thread
template <typename Body>
void for_each_chunk(const PixelStats& op, const PixelStatsKernels& k, const Chunks& chunks, int threads, Body body) {
  const int64_t total = chunks.total();
  const int64_t useful = op.N * op.C * op.S / SERIAL_ELEMENTS + 1;
  const size_t bytes = (k.scratch(op) + 63) / 64 * 64;
  parallel(total, static_cast<int>(std::min<int64_t>(threads, useful)), [&](auto&& next) {
    std::unique_ptr<void, Free> scratch(::operator new(bytes, std::align_val_t{64}));
    for (int64_t i; (i = next()) < total;) {
      const int64_t plane = i / chunks.per_plane, begin = i % chunks.per_plane * chunks.length;
      body(plane / chunks.classes, plane % chunks.classes, begin, std::min(begin + chunks.length, op.S), i,
           scratch.get());
    }
  });
}

// body(group, begin, end) for every run of pixels of one segment
template <typename Body>
void for_each_segment(const PixelStats& op, int64_t n, int64_t begin, int64_t end, Body body) {
  const int32_t* segment = op.segments + n * op.S;
  for (int64_t from = begin, to; from < end; from = to) {
    for (to = from + 1; to < end && segment[to] == segment[from];) ++to;
    body(segment[from], from, to);
  }
}

// A segment may lie in many chunks: each adds up its own segments, and the chunks are added in their order.
int64_t segment_sums(const PixelStats& op, double* sums, int threads) {
  const PixelStatsKernels& k = pixel_stats_kernels();
  const Chunks chunks(op, k);
  std::vector<std::vector<std::pair<int32_t, std::vector<double>>>> found(chunks.total());
  std::atomic<int64_t> invalid{0};
  for_each_chunk(op, k, chunks, threads,
                 [&](int64_t n, int64_t c, int64_t begin, int64_t end, int64_t i, void* scratch) {
                   std::unordered_map<int32_t, size_t> place;
                   std::vector<double> row(op.rows);
                   for_each_segment(op, n, begin, end, [&](int32_t group, int64_t from, int64_t to) {
                     invalid += k.pass(op, n, c, from, to, row.data(), scratch);
                     const auto [at, fresh] = place.try_emplace(group, found[i].size());
                     if (fresh) found[i].push_back({group, std::vector<double>(op.rows)});
                     double* sum = found[i][at->second].second.data();
                     for (int r = 0; r < op.rows; ++r) sum[r] += row[r];
                   });
                 });
  std::fill(sums, sums + op.rows * op.groups, 0.0);
  for (const auto& chunk : found)
    for (const auto& [group, row] : chunk)
      for (int r = 0; r < op.rows; ++r) sums[r * op.groups + group] += row[r];
  return invalid;
}

}  // namespace

int64_t pixel_stats_forward(const PixelStats& op, double* sums, int threads) {
  if (op.segments != nullptr) return segment_sums(op, sums, threads);
  const PixelStatsKernels& k = pixel_stats_kernels();
  const Chunks chunks(op, k);
  const std::unique_ptr<double[]> partial(new double[std::max<int64_t>(1, chunks.total() * chunks.row)]);
  std::atomic<int64_t> invalid{0};
  for_each_chunk(op, k, chunks, threads,
                 [&](int64_t n, int64_t c, int64_t begin, int64_t end, int64_t i, void* scratch) {
                   invalid += k.pass(op, n, c, begin, end, partial.get() + i * chunks.row, scratch);
                 });
  const int64_t width = chunks.classes == op.C && op.activation != SOFTMAX ? 1 : op.C;  // classes per partial row
  for (int64_t row = 0; row < op.rows; ++row)
    for (int64_t n = 0; n < op.N; ++n)
      for (int64_t c = 0; c < op.C; ++c) {
        const int64_t plane = n * chunks.classes + (width == 1 ? c : 0), lane = width == 1 ? 0 : c;
        double sum = 0;
        for (int64_t j = 0; j < chunks.per_plane; ++j)
          sum += partial[(plane * chunks.per_plane + j) * chunks.row + row * width + lane];
        sums[(row * op.N + n) * op.C + c] = sum;
      }
  return invalid;
}

void pixel_stats_backward(const PixelStats& op, int threads) {
  const PixelStatsKernels& k = pixel_stats_kernels();
  for_each_chunk(op, k, Chunks(op, k), threads,
                 [&](int64_t n, int64_t c, int64_t begin, int64_t end, int64_t, void* scratch) {
                   if (op.segments == nullptr) {
                     k.pass(op, n, c, begin, end, nullptr, scratch);
                     return;
                   }
                   PixelStats own = op;
                   for_each_segment(op, n, begin, end, [&](int32_t group, int64_t from, int64_t to) {
                     own.coefficient = op.coefficient + group - n;  // the kernel looks at row n
                     k.pass(own, n, c, from, to, nullptr, scratch);
                   });
                 });
}

int64_t pixel_stats_map(const PixelStats& op, int threads) {
  const PixelStatsKernels& k = pixel_stats_kernels();
  std::atomic<int64_t> invalid{0};
  for_each_chunk(op, k, Chunks(op, k), threads,
                 [&](int64_t n, int64_t c, int64_t begin, int64_t end, int64_t, void* scratch) {
                   invalid += k.map(op, n, c, begin, end, scratch);
                 });
  return invalid;
}

}  // namespace segfuse
