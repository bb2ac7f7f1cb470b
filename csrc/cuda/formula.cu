// Evaluates a formula on the sums of pixel_stats, and its derivative by every sum, in one launch.
//
// One block: the arrays have N or 1 rows and C, C-1 or 1 columns, and an instruction needs what the one before made.
// Memory: `workspace` holds every array, then (backward) the gradient of every array.
// Order:  an entry that gets a gradient from several others adds them by index.
#include "../formula.h"
#include "../segfuse_cuda.h"
#include "launch.cuh"

namespace segfuse {
namespace {

constexpr int FORMULA_THREADS = 256;

struct Array {
  int64_t rows, columns;
  double *at, *gradient;
  __device__ int64_t size() const { return rows * columns; }
  __device__ int64_t index(int64_t n, int64_t c) const {
    return (rows == 1 ? 0 : n) * columns + (columns == 1 ? 0 : c);
  }
};

// The arrays lie one after the other; where each begins stands in `offset`, in shared memory.
struct Machine {
  const cuda::FormulaCall& call;
  const int64_t* offset;
  int64_t total;

  __device__ const int32_t* instruction(int64_t i) const { return call.formula.code + i * 5; }
  __device__ Array array(int64_t i) const {
    const int32_t shape = instruction(i)[4];
    const int64_t columns = shape >> 1 == 0 ? 1 : (shape >> 1 == 1 ? call.C : call.C - 1);
    double* at = call.workspace + offset[i];
    return {(shape & 1) ? call.N : 1, columns, at, at + total};
  }

  // Entry j of the result of instruction i.
  __device__ double entry(int64_t i, const Array& out, int64_t j) const {
    const int32_t *code = instruction(i), op = code[0];
    const int64_t n = j / out.columns, c = j % out.columns;
    switch (op) {
      case ROW:
        return call.sums[code[1] * call.N * call.C + j];
      case PARAMETER:
        return call.parameters[code[1]];
      case SCALAR:
        return call.formula.constants[code[1]];
      case VECTOR:
        return call.formula.constants[code[1] + c];
      case NUMEL:
        return static_cast<double>(call.S);
      case SIZE_N:
        return static_cast<double>(call.N);
      case SIZE_C:
        return static_cast<double>(call.C);
      case CLASS_INDEX:
        return static_cast<double>(c);
      default:
        break;
    }
    const Array a = array(code[1]);
    switch (op) {
      case SUM_N: {
        double sum = 0;
        for (int64_t k = 0; k < a.rows; ++k) sum += a.at[a.index(k, c)];
        return sum;
      }
      case SUM_C: {
        double sum = 0;
        for (int64_t k = 0; k < a.columns; ++k) sum += a.at[a.index(n, k)];
        return sum;
      }
      case MAX_C: {
        double most = a.at[n * a.columns];
        for (int64_t k = 1; k < a.columns; ++k) most = fmax(most, a.at[n * a.columns + k]);
        return most;
      }
      case TAIL:
      case HEAD:
        return a.at[n * a.columns + c + (op == TAIL)];
      case WHERE: {
        const Array b = array(code[2]), d = array(code[3]);
        return a.at[a.index(n, c)] != 0 ? b.at[b.index(n, c)] : d.at[d.index(n, c)];
      }
      default:
        break;
    }
    if (op >= ADD && op <= NE) {
      const Array b = array(code[2]);
      return binary(op, a.at[a.index(n, c)], b.at[b.index(n, c)]);
    }
    return unary(op, a.at[j]);
  }

  // What entry (n, c) of the result of instruction i passes on to its operand number `side`.
  __device__ double passed_on(int64_t i, const Array& out, int64_t n, int64_t c, int side) const {
    const int32_t *code = instruction(i), op = code[0];
    const int64_t o = n * out.columns + c;
    const double g = out.gradient[o];
    const Array a = array(code[1]);
    if (op == WHERE) return side > 0 && (a.at[a.index(n, c)] != 0) == (side == 1) ? g : 0;
    if (g == 0) return 0;
    if (op <= MINIMUM) {
      const Array b = array(code[2]);
      double by_a, by_b;
      binary_slope(op, g, a.at[a.index(n, c)], b.at[b.index(n, c)], out.at[o], by_a, by_b);
      return side == 0 ? by_a : by_b;
    }
    return g * unary_slope(op, a.at[o], out.at[o]);
  }

  // Adds the gradient of instruction i to entry j of its operand number `side`.
  __device__ void reverse(int64_t i, const Array& out, int side, const Array& to, int64_t j) const {
    const int32_t op = instruction(i)[0];
    const int64_t n = j / to.columns, c = j % to.columns;
    double sum = 0;
    if (op == SUM_N || op == SUM_C) {
      sum = out.gradient[out.index(n, c)];
    } else if (op == TAIL || op == HEAD) {
      const int64_t k = c - (op == TAIL);
      if (k >= 0 && k < out.columns) sum = out.gradient[n * out.columns + k];
    } else {
      const int64_t rows = to.rows == out.rows ? 1 : out.rows, columns = to.columns == out.columns ? 1 : out.columns;
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = 0; x < columns; ++x)
          sum += passed_on(i, out, rows == 1 && out.rows > 1 ? n : y, columns == 1 && out.columns > 1 ? c : x, side);
    }
    to.gradient[j] += sum;
  }
};

__device__ __forceinline__ bool constant(int32_t op) { return op < ADD && op != ROW && op != PARAMETER; }
__device__ __forceinline__ bool passes_nothing(int32_t op) {
  return op < ADD || op == DETACH || op == MAX_C || (op >= GT && op <= NE);
}
__device__ __forceinline__ int operands(int32_t op) { return op == WHERE ? 3 : (op >= ADD && op <= NE ? 2 : 1); }

// Runs every instruction. The offsets of the arrays go to shared memory.
__device__ __forceinline__ Machine run(const cuda::FormulaCall& call) {
  int64_t* offset = reinterpret_cast<int64_t*>(shared_memory());
  const int64_t length = call.formula.length;
  if (threadIdx.x == 0) {
    int64_t at = 0;
    for (int64_t i = 0; i < length; ++i) {
      const int32_t shape = call.formula.code[i * 5 + 4];
      offset[i] = at;
      at += ((shape & 1) ? call.N : 1) * (shape >> 1 == 0 ? 1 : (shape >> 1 == 1 ? call.C : call.C - 1));
    }
    offset[length] = at;
  }
  __syncthreads();
  const Machine m{call, offset, offset[length]};
  for (int64_t i = 0; i < length; ++i) {
    const Array out = m.array(i);
    for (int64_t j = threadIdx.x; j < out.size(); j += FORMULA_THREADS) out.at[j] = m.entry(i, out, j);
    __syncthreads();
  }
  return m;
}

__global__ void __launch_bounds__(FORMULA_THREADS)
    evaluate(const __grid_constant__ cuda::FormulaCall call, void* value, bool value_is_double, double* terms) {
  const Machine m = run(call);
  const Array out = m.array(call.formula.outputs[0]);
  for (int64_t j = threadIdx.x; j < out.size(); j += FORMULA_THREADS) {
    if (value_is_double) {
      static_cast<double*>(value)[j] = out.at[j];
    } else {
      static_cast<float*>(value)[j] = static_cast<float>(out.at[j]);
    }
  }
  for (int k = 1 + threadIdx.x; terms != nullptr && k < call.formula.n_outputs; k += FORMULA_THREADS)
    terms[k - 1] = *m.array(call.formula.outputs[k]).at;
}

__global__ void __launch_bounds__(FORMULA_THREADS)
    derive(const __grid_constant__ cuda::FormulaCall call, const void* grad, bool grad_is_double, double* coefficient,
           double* parameter_grad) {
  const Machine m = run(call);
  const int64_t plane = call.N * call.C;
  for (int64_t j = threadIdx.x; j < m.total; j += FORMULA_THREADS) call.workspace[m.total + j] = 0;
  for (int64_t j = threadIdx.x; j < call.rows * plane; j += FORMULA_THREADS) coefficient[j] = 0;
  for (int j = threadIdx.x; j < call.n_parameters; j += FORMULA_THREADS) parameter_grad[j] = 0;
  __syncthreads();
  const Array loss = m.array(call.formula.outputs[0]);
  for (int64_t j = threadIdx.x; j < loss.size(); j += FORMULA_THREADS)
    loss.gradient[j] =
        grad_is_double ? static_cast<const double*>(grad)[j] : static_cast<double>(static_cast<const float*>(grad)[j]);
  __syncthreads();
  for (int64_t i = call.formula.length - 1; i >= 0; --i) {
    const int32_t *code = m.instruction(i), op = code[0];
    const Array out = m.array(i);
    if (op == ROW) {
      for (int64_t j = threadIdx.x; j < out.size(); j += FORMULA_THREADS)
        coefficient[code[1] * plane + j] += out.gradient[j];
    } else if (op == PARAMETER) {
      if (threadIdx.x == 0) parameter_grad[code[1]] += *out.gradient;
    }
    if (op == ROW || op == PARAMETER) __syncthreads();
    if (passes_nothing(op)) continue;
    for (int side = op == WHERE ? 1 : 0; side < operands(op); ++side) {
      if (constant(m.instruction(code[1 + side])[0])) continue;
      const Array to = m.array(code[1 + side]);
      for (int64_t j = threadIdx.x; j < to.size(); j += FORMULA_THREADS) m.reverse(i, out, side, to, j);
      __syncthreads();
    }
  }
}

size_t shared_bytes(const Formula& formula) { return (formula.length + 1) * sizeof(int64_t); }

}  // namespace

namespace cuda {

int64_t formula_workspace(const int32_t* host_code, int64_t length, int64_t N, int64_t C) {
  int64_t total = 0;
  for (int64_t i = 0; i < length; ++i) {
    const int32_t shape = host_code[i * 5 + 4];
    total += ((shape & 1) ? N : 1) * (shape >> 1 == 0 ? 1 : (shape >> 1 == 1 ? C : C - 1));
  }
  return 2 * total * static_cast<int64_t>(sizeof(double));
}

cudaError_t formula_forward(const FormulaCall& call, void* value, bool value_is_double, double* terms,
                            cudaStream_t stream) {
  return launch(evaluate, 1, FORMULA_THREADS, shared_bytes(call.formula), stream, call, value, value_is_double, terms);
}

cudaError_t formula_backward(const FormulaCall& call, const void* grad, bool grad_is_double, double* coefficient,
                             double* parameter_grad, cudaStream_t stream) {
  return launch(derive, 1, FORMULA_THREADS, shared_bytes(call.formula), stream, call, grad, grad_is_double, coefficient,
                parameter_grad);
}

}  // namespace cuda
}  // namespace segfuse
