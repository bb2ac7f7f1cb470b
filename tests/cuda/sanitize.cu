// Runs the fused pass on small shapes that reach every branch of its kernels, without Python, for compute-sanitizer:
//
//   nvcc -std=c++17 -O1 -lineinfo -Icsrc tests/cuda/sanitize.cu csrc/cuda/pixel_stats.cu csrc/cuda/top_k.cu -o sanitize
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
  printf(failures == 0 ? "passed\n" : "%d failures\n", failures);
  return failures != 0;
}
