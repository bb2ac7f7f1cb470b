// Evaluates a formula on the sums of pixel_stats, and its derivative by every sum, in one launch.
//
// One block: the arrays have N or 1 rows and C, C-1 or 1 columns, and an instruction needs what the one before made.
// Memory: shared memory holds the instructions, the constants and, where there is room, the array of every instruction
//         and (backward) its gradient; otherwise these lie in `workspace`. Each step then waits for shared memory
//         alone.
// Order:  an entry that gets a gradient from several others adds them by index.
#include "../formula.h"
#include "../segfuse_cuda.h"
#include "launch.cuh"

namespace segfuse {
namespace {

constexpr int FORMULA_THREADS = 256;

struct Array {
  int rows, columns;
  double *at, *gradient;
  __device__ int size() const { return rows * columns; }
  __device__ int index(int n, int c) const { return (rows == 1 ? 0 : n) * columns + (columns == 1 ? 0 : c); }
};

__host__ __device__ int columns_of(int32_t shape, int64_t C) {
  return static_cast<int>(shape >> 1 == 0 ? 1 : (shape >> 1 == 1 ? C : C - 1));
}

struct Machine {
  const cuda::FormulaCall& call;
  const int32_t* code;  // [length, 6]: op, a, b, c, shape, place of the array
  const double* constants;
  double* arrays;
  int total;  // entries of all arrays

  __device__ const int32_t* instruction(int i) const { return code + i * 6; }
  __device__ Array array(int i) const {
    const int32_t* own = instruction(i);
    double* at = arrays + own[5];
    return {(own[4] & 1) ? static_cast<int>(call.N) : 1, columns_of(own[4], call.C), at, at + total};
  }

  // Entry j of the result of instruction i.
  __device__ double entry(int i, const Array& out, int j) const {
    const int32_t *own = instruction(i), op = own[0];
    const int n = j / out.columns, c = j % out.columns;
    switch (op) {
      case ROW:
        return call.sums[own[1] * call.N * call.C + j];
      case PARAMETER:
        return call.parameters[own[1]];
      case SCALAR:
        return constants[own[1]];
      case VECTOR:
        return constants[own[1] + c];
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
    const Array a = array(own[1]);
    switch (op) {
      case SUM_N: {
        double sum = 0;
        for (int k = 0; k < a.rows; ++k) sum += a.at[a.index(k, c)];
        return sum;
      }
      case SUM_C: {
        double sum = 0;
        for (int k = 0; k < a.columns; ++k) sum += a.at[a.index(n, k)];
        return sum;
      }
      case MAX_C: {
        double most = a.at[n * a.columns];
        for (int k = 1; k < a.columns; ++k) most = binary(MAXIMUM, a.at[n * a.columns + k], most);
        return most;
      }
      case TAIL:
      case HEAD:
        return a.at[n * a.columns + c + (op == TAIL)];
      case WHERE: {
        const Array b = array(own[2]), d = array(own[3]);
        return a.at[a.index(n, c)] != 0 ? b.at[b.index(n, c)] : d.at[d.index(n, c)];
      }
      default:
        break;
    }
    if (op >= ADD && op <= NE) {
      const Array b = array(own[2]);
      return binary(op, a.at[a.index(n, c)], b.at[b.index(n, c)]);
    }
    return unary(op, a.at[j]);
  }

  // What entry (n, c) of the result of instruction i passes on to its operand number `side`.
  __device__ double passed_on(int i, const Array& out, int n, int c, int side) const {
    const int32_t *own = instruction(i), op = own[0];
    const int o = n * out.columns + c;
    const double g = out.gradient[o];
    const Array a = array(own[1]);
    if (op == WHERE) return side > 0 && (a.at[a.index(n, c)] != 0) == (side == 1) ? g : 0;
    if (g == 0) return 0;
    if (op <= MINIMUM) {
      const Array b = array(own[2]);
      double by_a, by_b;
      binary_slope(op, g, a.at[a.index(n, c)], b.at[b.index(n, c)], out.at[o], by_a, by_b);
      return side == 0 ? by_a : by_b;
    }
    return g * unary_slope(op, a.at[o], out.at[o]);
  }

  // Adds the gradient of instruction i to entry j of its operand number `side`.
  __device__ void reverse(int i, const Array& out, int side, const Array& to, int j) const {
    const int32_t op = instruction(i)[0];
    const int n = j / to.columns, c = j % to.columns;
    double sum = 0;
    if (op == SUM_N || op == SUM_C) {
      sum = out.gradient[out.index(n, c)];
    } else if (op == TAIL || op == HEAD) {
      const int k = c - (op == TAIL);
      if (k >= 0 && k < out.columns) sum = out.gradient[n * out.columns + k];
    } else {
      const int rows = to.rows == out.rows ? 1 : out.rows, columns = to.columns == out.columns ? 1 : out.columns;
      for (int y = 0; y < rows; ++y)
        for (int x = 0; x < columns; ++x)
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

// Runs every instruction. `sets`: 2 with room for gradients.
__device__ __forceinline__ Machine run(const cuda::FormulaCall& call, int sets) {
  const int length = static_cast<int>(call.formula.length), words = length * 6;
  double* const constants = reinterpret_cast<double*>(shared_memory());
  double* const arrays = call.shared_arrays ? constants + call.n_constants : call.workspace;
  int32_t* const code =
      reinterpret_cast<int32_t*>(constants + call.n_constants + (call.shared_arrays ? sets * call.total : 0));
  for (int i = threadIdx.x; i < call.n_constants; i += FORMULA_THREADS) constants[i] = call.formula.constants[i];
  for (int i = threadIdx.x; i < words; i += FORMULA_THREADS) code[i] = call.formula.code[i];
  __syncthreads();
  const Machine m{call, code, constants, arrays, static_cast<int>(call.total)};
  for (int i = 0; i < length; ++i) {
    const Array out = m.array(i);
    for (int j = threadIdx.x; j < out.size(); j += FORMULA_THREADS) out.at[j] = m.entry(i, out, j);
    __syncthreads();
  }
  return m;
}

__global__ void __launch_bounds__(FORMULA_THREADS)
    evaluate(const __grid_constant__ cuda::FormulaCall call, void* value, bool value_is_double, double* terms) {
  const Machine m = run(call, 1);
  const Array out = m.array(call.formula.outputs[0]);
  for (int j = threadIdx.x; j < out.size(); j += FORMULA_THREADS) {
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
  const Machine m = run(call, 2);
  const int64_t plane = call.N * call.C;
  for (int j = threadIdx.x; j < m.total; j += FORMULA_THREADS) m.arrays[m.total + j] = 0;
  for (int64_t j = threadIdx.x; j < call.rows * plane; j += FORMULA_THREADS) coefficient[j] = 0;
  for (int j = threadIdx.x; j < call.n_parameters; j += FORMULA_THREADS) parameter_grad[j] = 0;
  __syncthreads();
  const Array loss = m.array(call.formula.outputs[0]);
  for (int j = threadIdx.x; j < loss.size(); j += FORMULA_THREADS)
    loss.gradient[j] =
        grad_is_double ? static_cast<const double*>(grad)[j] : static_cast<double>(static_cast<const float*>(grad)[j]);
  __syncthreads();
  for (int i = static_cast<int>(call.formula.length) - 1; i >= 0; --i) {
    const int32_t *own = m.instruction(i), op = own[0];
    const Array out = m.array(i);
    if (op == ROW) {
      for (int j = threadIdx.x; j < out.size(); j += FORMULA_THREADS)
        coefficient[own[1] * plane + j] += out.gradient[j];
    } else if (op == PARAMETER) {
      if (threadIdx.x == 0) parameter_grad[own[1]] += *out.gradient;
    }
    if (op == ROW || op == PARAMETER) __syncthreads();
    if (passes_nothing(op)) continue;
    for (int side = op == WHERE ? 1 : 0; side < operands(op); ++side) {
      if (constant(m.instruction(own[1 + side])[0])) continue;
      const Array to = m.array(own[1 + side]);
      for (int j = threadIdx.x; j < to.size(); j += FORMULA_THREADS) m.reverse(i, out, side, to, j);
      __syncthreads();
    }
  }
}

constexpr size_t MOST_SHARED = 96 << 10;  // bytes

// Bytes of shared memory; decides whether the arrays lie there.
size_t shared_bytes(cuda::FormulaCall& call, int sets) {
  const size_t tables = call.n_constants * sizeof(double) + call.formula.length * 6 * sizeof(int32_t);
  const size_t arrays = sets * call.total * sizeof(double);
  call.shared_arrays = tables + arrays <= MOST_SHARED;
  return tables + (call.shared_arrays ? arrays : 0);
}

}  // namespace

namespace cuda {

int64_t formula_layout(int32_t* code, int64_t length, int64_t N, int64_t C) {
  int64_t total = 0;
  for (int64_t i = 0; i < length; ++i) {
    code[i * 6 + 5] = static_cast<int32_t>(total);
    total += ((code[i * 6 + 4] & 1) ? N : 1) * columns_of(code[i * 6 + 4], C);
  }
  return total;
}

cudaError_t formula_forward(FormulaCall call, void* value, bool value_is_double, double* terms, cudaStream_t stream) {
  const size_t shared = shared_bytes(call, 1);
  return launch(evaluate, 1, FORMULA_THREADS, shared, stream, call, value, value_is_double, terms);
}

cudaError_t formula_backward(FormulaCall call, const void* grad, bool grad_is_double, double* coefficient,
                             double* parameter_grad, cudaStream_t stream) {
  const size_t shared = shared_bytes(call, 2);
  return launch(derive, 1, FORMULA_THREADS, shared, stream, call, grad, grad_is_double, coefficient, parameter_grad);
}

}  // namespace cuda
}  // namespace segfuse
