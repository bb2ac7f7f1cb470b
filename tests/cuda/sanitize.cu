// Runs kernels on small shapes that reach every branch of them, without Python, for compute-sanitizer:
//
//   cd csrc/cuda && nvcc -std=c++17 -O1 -lineinfo -I.. ../../tests/cuda/sanitize.cu pixel_stats.cu top_k.cu \
//     distance_transform_edt.cu erosion.cu disk_sums.cu pairwise_hausdorff.cu -o sanitize
//   for tool in memcheck racecheck initcheck synccheck; do compute-sanitizer --tool $tool ./sanitize; done
//
// It fails where a sum is not that of the pixels. As C++ with -DSEGFUSE_EMULATION and -fsanitize=address it runs
// without a GPU.
#include <cmath>
#include <cstdio>
#include <vector>

#include "segfuse_cuda.h"

#ifdef SEGFUSE_EMULATION
static cudaError_t cudaMalloc(void** at, size_t bytes) { return *at = malloc(bytes), cudaSuccess; }
static cudaError_t cudaFree(void* at) { return free(at), cudaSuccess; }
enum { cudaMemcpyDefault };
static cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  return memcpy(to, from, bytes), cudaSuccess;
}
#endif

using namespace segfuse;

namespace {

int failures = 0;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  printf("%s: %s\n", what, cudaGetErrorString(error));
  ++failures;
}

template <typename T>
struct Memory {
  T* at = nullptr;
  size_t size;
  explicit Memory(size_t size) : size(size) {
    check(cudaMalloc(reinterpret_cast<void**>(&at), size * sizeof(T) + 1), "cudaMalloc");
  }
  explicit Memory(const std::vector<T>& values) : Memory(values.size()) {
    check(cudaMemcpy(at, values.data(), size * sizeof(T), cudaMemcpyDefault), "cudaMemcpy");
  }
  ~Memory() { cudaFree(at); }
  std::vector<T> read() const {
    std::vector<T> values(size);
    check(cudaMemcpy(values.data(), at, size * sizeof(T), cudaMemcpyDefault), "cudaMemcpy");
    return values;
  }
};

View view(void* data, DType dtype, int64_t batch, int64_t channel) {
  View v;
  v.data = static_cast<char*>(data);
  v.dtype = dtype;
  v.batch = batch;
  v.channel = channel;
  v.spatial[0] = 1;
  return v;
}

// Every moment and `terms` terms of N samples with C classes.
void run(int64_t N, int64_t C, int64_t S, Activation activation, bool region_only, int terms) {
  std::vector<float> logits(N * C * S);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 17) / 4 - 2;
  std::vector<uint8_t> labels(N * S * (activation == SOFTMAX ? 1 : C));
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<uint8_t>(i % (activation == SOFTMAX ? C : 2));
  const Memory<float> input(logits), gradient(logits.size());
  const Memory<uint8_t> target(labels);

  PixelStats op{};
  op.N = N, op.C = C, op.S = S, op.groups = N;
  op.dims = 1;
  op.shape[0] = S;
  op.activation = activation;
  op.index_target = activation == SOFTMAX;
  op.ignore_index = -100;
  for (int m = 0; m < MOMENTS; ++m) {
    const bool wanted = m == COUNT || m == TRUE || m == PRED || m == TP || (!region_only && m < DISTANCE_PRED);
    op.moment[m] = wanted ? op.rows++ : -1;
  }
  for (int k = 0; k < terms; ++k, op.rows += 2) op.term[op.terms++] = {FOCAL, double(k), 0, op.rows, false};
  op.input = view(input.at, F32, C * S, S);
  op.target = activation == SOFTMAX ? view(target.at, U8, S, 0) : view(target.at, U8, C * S, S);

  const Memory<double> sums(op.rows * N * C);
  const int64_t bytes = cuda::pixel_stats_workspace(op);
  const Memory<char> workspace(bytes);
  check(cuda::pixel_stats_forward(op, sums.at, workspace.at, nullptr), "pixel_stats_forward");
  const Memory<double> coefficient(std::vector<double>(op.rows * N * C, 0.5));
  op.output = view(gradient.at, F32, C * S, S);
  op.coefficient = coefficient.at;
  check(cuda::pixel_stats_backward(op, nullptr), "pixel_stats_backward");

  const std::vector<double> found = sums.read();
  for (int64_t group = 0; group < N * C; ++group) {
    const double pixels = found[op.moment[COUNT] * N * C + group], p = found[op.moment[PRED] * N * C + group];
    if (pixels == double(S) && p > 0 && p < double(S)) continue;
    printf("C=%d S=%d: %g pixels, %g predicted\n", int(C), int(S), pixels, p), ++failures;
  }
  for (float g : gradient.read())
    if (!std::isfinite(g)) {
      printf("C=%d S=%d: a gradient of %g\n", int(C), int(S), g), ++failures;
      break;
    }
}

void select(int64_t rows, int64_t length) {
  std::vector<float> values(rows * length);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 7919) % 101);
  const Memory<float> given(values);
  const Memory<uint8_t> chosen(values.size());
  const TopK op{rows, length, F32, given.at, nullptr, 30, chosen.at};
  const Memory<double> sum(rows), count(rows);
  const Memory<char> workspace(cuda::top_k_workspace(op));
  check(cuda::top_k_forward(op, sum.at, count.at, workspace.at, nullptr), "top_k_forward");
  for (double found : count.read())
    if (found != std::floor(length * 0.3)) printf("chose %g of %d\n", found, int(length)), ++failures;
}

// Every mode, arithmetic and option of the transform of two samples with sides D, H, W.
void measure(int64_t D, int64_t H, int64_t W) {
  const int64_t S = D * H * W, classes = 3;
  std::vector<int32_t> labels(2 * S);
  for (int64_t i = 0; i < 2 * S; ++i) labels[i] = i < S ? static_cast<int32_t>(i * 7919 / 13 % 97 % 3) : 1;
  const Memory<int32_t> input(labels), indices(3 * 2 * classes * S);
  const Memory<double> output(2 * classes * S), second(2 * S);
  const int64_t leading = 2, strides = S, numbers[classes] = {0, 2, -1};
  for (int mode = INSIDE; mode <= NEAREST_TWO; ++mode)
    for (int options = 0; options < 16; ++options) {
      const bool spaced = options & 1, wide = options & 2, with_indices = options & 4, by_class = options & 8;
      if ((mode == NEAREST_TWO && with_indices) || (mode >= LABELS && by_class)) continue;
      DistanceTransform op{};
      op.input = reinterpret_cast<const char*>(input.at);
      op.dtype = I32;
      op.leading = 1, op.leading_shape = &leading, op.leading_strides = &strides;
      const int64_t shape[3] = {D, H, W}, steps[3] = {H * W, W, 1};
      for (int d = 0; d < 3; ++d)
        op.shape[d] = shape[d], op.strides[d] = steps[d], op.spacing[d] = spaced ? 1 + 0.3 * d : 1;
      op.mode = static_cast<DistanceMode>(mode);
      op.classes = by_class ? classes : 1;
      op.class_number = by_class ? numbers : nullptr;
      op.output_double = wide;
      op.output = output.at;
      op.second = second.at;
      op.indices = with_indices ? indices.at : nullptr;
      op.axes = 3;
      const Memory<char> workspace(cuda::distance_transform_edt_workspace(op));
      check(cuda::distance_transform_edt(op, workspace.at, nullptr), "distance_transform_edt");
      if (!wide || mode == NEAREST_TWO || by_class) continue;
      const std::vector<double> found = output.read();
      for (int64_t i = 0; i < S; ++i)
        if (found[S + i] != 0) {
          printf("mode %d: %g in a sample with one label\n", mode, found[S + i]), ++failures;
          break;
        }
    }
}

// The ops on a pair of two samples with three classes, the first of them left out.
template <typename T>
void pairs(int dims, int64_t D, int64_t H, int64_t W) {
  const int64_t S = D * H * W, N = 2, C = 3, groups = N * (C - 1);
  std::vector<T> p(N * C * S), weight(N * S);
  std::vector<int16_t> code(N * S);
  for (int64_t i = 0; i < N * C * S; ++i) p[i] = static_cast<T>(i * 7919 % 101) / 101;
  for (int64_t i = 0; i < N * S; ++i) code[i] = static_cast<int16_t>(i * 31 / 7 % 4 - 1), weight[i] = T(i % 3);
  const Memory<T> given(p), weights(weight), gradient(p.size());
  const Memory<int16_t> codes(code);
  const Memory<double> sums(groups);
  for (bool weighted : {false, true})
    for (bool derive : {false, true}) {
      const HardPair pair{N,
                          C,
                          1,
                          dims,
                          {D, H, W},
                          sizeof(T) == 8 ? F64 : F32,
                          true,
                          false,
                          false,
                          given.at,
                          codes.at,
                          weighted ? weights.at : nullptr,
                          derive ? gradient.at : nullptr};
      const auto finite = [&](const char* what) {
        for (double sum : sums.read())
          if (!std::isfinite(sum)) printf("%s: %g\n", what, sum), ++failures;
      };
      for (ErosionNorm norm : {MINMAX, DOUBLE, NONE}) {
        const Erosion op{pair, 3, 2, norm};
        const Memory<char> workspace(cuda::erosion_workspace(op));
        check(cuda::erosion_forward(op, sums.at, workspace.at, nullptr), "erosion_forward");
        finite("erosion");
      }
      for (int radius : {3, 20}) {
        DiskSums op{pair, nullptr, 2, {1, radius}, {1, 2}};
        const Memory<char> workspace(cuda::disk_sums_workspace(op));
        check(cuda::disk_sums_forward(op, sums.at, workspace.at, nullptr), "disk_sums_forward");
        finite("disk_sums");
      }
      for (PairwiseMean mean : {HARMONIC, POWER_MEAN, LEAST, POWER_MIN}) {
        const PairwiseHausdorff op{pair, mean, -2, 1e-6, nullptr, nullptr};
        const Memory<char> workspace(cuda::pairwise_hausdorff_workspace(op, 0));
        check(cuda::pairwise_hausdorff_forward(op, 0, sums.at, workspace.at, nullptr), "pairwise_hausdorff_forward");
        finite("pairwise_hausdorff");
      }
    }
}

}  // namespace

int main() {
  for (int64_t S : {1, 33 * 47, 5000})
    for (int terms : {0, 1, 3})
      for (bool region_only : {true, false}) {
        run(2, 1, S, SIGMOID, region_only, terms);
        run(2, 3, S, SIGMOID, region_only, terms);
        for (int64_t C : {2, 3, 19, 33, 117}) run(2, C, S, SOFTMAX, region_only, terms);
      }
  select(2, 20001);
  measure(1, 1, 47);
  measure(1, 33, 47);
  measure(1, 47, 33);
  measure(7, 9, 35);
  measure(1, 6000, 3);
  measure(1, 3, 5000);
  measure(1, 2, 33000);
  pairs<float>(1, 1, 1, 47);
  pairs<float>(2, 1, 33, 47);
  pairs<double>(2, 1, 33, 47);
  pairs<float>(3, 7, 9, 11);
  printf(failures == 0 ? "passed\n" : "%d failures\n", failures);
  return failures != 0;
}
