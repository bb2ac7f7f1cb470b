// Evaluates a formula on the sums of pixel_stats, and its derivative by every sum.
//
// A formula is a list of instructions (ops/formula.py writes it); each makes one array of float64 with N or 1 rows and
// C, C-1 or 1 columns, broadcasting as usual. The arrays are tiny, so what counts is to do it in one call:
// as torch operations a Dice formula costs more than the fused pass over a small batch.
// Backward runs the list in reverse. An entry without gradient passes none on, so 0 * inf never makes a NaN.
#include "../formula.h"

#include <cmath>
#include <vector>

namespace segfuse {
namespace {

struct Array {
  int64_t rows, columns;
  double* at;
  int64_t size() const { return rows * columns; }
  int64_t index(int64_t n, int64_t c) const { return (rows == 1 ? 0 : n) * columns + (columns == 1 ? 0 : c); }
};

struct Input {
  const double* sums;  // [K, N, C]
  int64_t N, C, S;
  const double* parameters;
};

struct Machine {
  const Formula& f;
  const Input in;
  std::vector<Array> arrays;
  std::vector<double> memory;

  Machine(const Formula& formula, const Input& input) : f(formula), in(input), arrays(formula.length) {
    int64_t total = 0;
    for (int64_t i = 0; i < f.length; ++i) {
      const int32_t shape = f.code[i * 5 + 4];
      const int64_t columns[] = {1, in.C, in.C - 1};
      arrays[i] = {(shape & 1) ? in.N : 1, columns[shape >> 1], nullptr};
      total += arrays[i].size();
    }
    memory.resize(total);
    double* at = memory.data();
    for (Array& a : arrays) a.at = at, at += a.size();
    for (int64_t i = 0; i < f.length; ++i) run(i);
  }

  const int32_t* instruction(int64_t i) const { return f.code + i * 5; }

  // visit(out, a, b, c): indices of one output entry and of the entries it is made of
  template <typename Visit>
  void each(const Array& out, const Array& a, const Array& b, const Array& c, Visit visit) const {
    for (int64_t n = 0, o = 0; n < out.rows; ++n)
      for (int64_t k = 0; k < out.columns; ++k, ++o) visit(o, a.index(n, k), b.index(n, k), c.index(n, k));
  }

  void run(int64_t i) {
    const int32_t *code = instruction(i), op = code[0];
    const Array& out = arrays[i];
    double* to = out.at;
    switch (op) {
      case ROW:
        for (int64_t j = 0; j < out.size(); ++j) to[j] = in.sums[code[1] * in.N * in.C + j];
        return;
      case PARAMETER:
        *to = in.parameters[code[1]];
        return;
      case SCALAR:
        *to = f.constants[code[1]];
        return;
      case VECTOR:
        for (int64_t c = 0; c < out.columns; ++c) to[c] = f.constants[code[1] + c];
        return;
      case NUMEL:
        *to = static_cast<double>(in.S);
        return;
      case SIZE_N:
        *to = static_cast<double>(in.N);
        return;
      case SIZE_C:
        *to = static_cast<double>(in.C);
        return;
      case CLASS_INDEX:
        for (int64_t c = 0; c < out.columns; ++c) to[c] = static_cast<double>(c);
        return;
      default:
        break;
    }
    const Array& a = arrays[code[1]];
    switch (op) {
      case SUM_N:
      case SUM_C:
        for (int64_t j = 0; j < out.size(); ++j) to[j] = 0;
        for (int64_t n = 0, j = 0; n < a.rows; ++n)
          for (int64_t c = 0; c < a.columns; ++c, ++j) to[out.index(n, c)] += a.at[j];
        return;
      case MAX_C:
        for (int64_t n = 0; n < a.rows; ++n) {
          to[n] = a.at[n * a.columns];
          for (int64_t c = 1; c < a.columns; ++c) to[n] = binary(MAXIMUM, a.at[n * a.columns + c], to[n]);
        }
        return;
      case TAIL:
      case HEAD:
        for (int64_t n = 0, j = 0; n < out.rows; ++n)
          for (int64_t c = 0; c < out.columns; ++c, ++j) to[j] = a.at[n * a.columns + c + (op == TAIL)];
        return;
      case WHERE: {
        const Array &b = arrays[code[2]], &c = arrays[code[3]];
        each(out, a, b, c,
             [&](int64_t o, int64_t x, int64_t y, int64_t z) { to[o] = a.at[x] != 0 ? b.at[y] : c.at[z]; });
        return;
      }
      default:
        break;
    }
    if (op >= ADD && op <= NE) {
      const Array& b = arrays[code[2]];
      each(out, a, b, b, [&](int64_t o, int64_t x, int64_t y, int64_t) { to[o] = binary(op, a.at[x], b.at[y]); });
    } else {
      for (int64_t j = 0; j < out.size(); ++j) to[j] = unary(op, a.at[j]);
    }
  }

  // Adds the gradient of instruction i to the gradients of its operands.
  void reverse(int64_t i, std::vector<double>& gradient, double* coefficient, double* parameter_grad) const {
    const int32_t *code = instruction(i), op = code[0];
    const Array& out = arrays[i];
    auto grad = [&](const Array& a) { return gradient.data() + (a.at - memory.data()); };
    const double* g = grad(out);
    if (op == ROW) {
      for (int64_t j = 0; j < out.size(); ++j) coefficient[code[1] * in.N * in.C + j] += g[j];
      return;
    }
    if (op == PARAMETER) {
      parameter_grad[code[1]] += *g;
      return;
    }
    if (op < ADD || op == DETACH || op == MAX_C || (op >= GT && op <= NE)) return;
    const Array& a = arrays[code[1]];
    double* ga = grad(a);
    if (op == SUM_N || op == SUM_C) {
      for (int64_t n = 0, j = 0; n < a.rows; ++n)
        for (int64_t c = 0; c < a.columns; ++c, ++j) ga[j] += g[out.index(n, c)];
    } else if (op == TAIL || op == HEAD) {
      for (int64_t n = 0, j = 0; n < out.rows; ++n)
        for (int64_t c = 0; c < out.columns; ++c, ++j) ga[n * a.columns + c + (op == TAIL)] += g[j];
    } else if (op == WHERE) {
      const Array &b = arrays[code[2]], &c = arrays[code[3]];
      double *gb = grad(b), *gc = grad(c);
      each(out, a, b, c, [&](int64_t o, int64_t x, int64_t y, int64_t z) { (a.at[x] != 0 ? gb[y] : gc[z]) += g[o]; });
    } else if (op <= MINIMUM) {
      const Array& b = arrays[code[2]];
      double* gb = grad(b);
      each(out, a, b, b, [&](int64_t o, int64_t x, int64_t y, int64_t) {
        if (g[o] == 0) return;
        double by_a, by_b;
        binary_slope(op, g[o], a.at[x], b.at[y], out.at[o], by_a, by_b);
        ga[x] += by_a, gb[y] += by_b;
      });
    } else {
      for (int64_t j = 0; j < out.size(); ++j)
        if (g[j] != 0) ga[j] += g[j] * unary_slope(op, a.at[j], out.at[j]);
    }
  }
};

Input input_of(const Evaluation& e, const double* sums) { return {sums, e.op.N, e.op.C, e.op.S, e.parameters}; }

int64_t size_of(const Evaluation& e) { return e.op.rows * e.op.N * e.op.C; }

// coefficient [K, N, C] and parameter_grad; seed(j) is the gradient of entry j of the loss
template <typename Seed>
void derive(const Evaluation& e, const double* sums, Seed seed, double* coefficient, double* parameter_grad) {
  const Machine m(e.formula, input_of(e, sums));
  for (int64_t j = 0; j < size_of(e); ++j) coefficient[j] = 0;
  for (int j = 0; j < e.n_parameters; ++j) parameter_grad[j] = 0;
  std::vector<double> gradient(m.memory.size(), 0.0);
  const Array& out = m.arrays[e.formula.outputs[0]];
  double* to = gradient.data() + (out.at - m.memory.data());
  for (int64_t j = 0; j < out.size(); ++j) to[j] = seed(j);
  for (int64_t i = e.formula.length - 1; i >= 0; --i) m.reverse(i, gradient, coefficient, parameter_grad);
}

// The sums as far as they follow from the target: what multiplies the terms of a linear formula depends on nothing
// else.
std::vector<double> known_sums(const Evaluation& e, int threads) {
  std::vector<double> known(size_of(e), 0.0);
  if (e.count_first) {
    PixelStats counts = e.op;  // the counts are the first rows
    counts.rows = 0;
    counts.terms = 0;
    counts.output.data = nullptr;
    for (int m = 0; m < MOMENTS; ++m) {
      if (m > TRUE2) counts.moment[m] = -1;
      counts.rows += counts.moment[m] >= 0;
    }
    pixel_stats_forward(counts, known.data(), threads);
  } else if (e.op.moment[COUNT] >= 0) {
    double* row = known.data() + e.op.moment[COUNT] * e.op.N * e.op.C;
    for (int64_t j = 0; j < e.op.N * e.op.C; ++j) row[j] = static_cast<double>(e.op.S);
  }
  return known;
}

// r with a = r b everywhere, NaN when there is none
double ratio(const double* a, const double* b, int64_t length) {
  int64_t first = 0;
  while (first < length && b[first] == 0) ++first;
  const double r = first < length ? a[first] / b[first] : 1;
  for (int64_t i = 0; i < length; ++i)
    if (!(std::fabs(a[i] - r * b[i]) <= 1e-14 * std::fabs(a[i]))) return NAN;
  return r;
}

}  // namespace

int64_t formula_forward(const Evaluation& e, void* value, bool value_is_double, double* terms, int threads) {
  PixelStats op = e.op;
  if (e.ahead) {
    double* assumed = e.sums + size_of(e);
    derive(e, known_sums(e, threads).data(), [](int64_t) { return 1.0; }, assumed, nullptr);
    op.coefficient = assumed;
  }
  const int64_t invalid = pixel_stats_forward(op, e.sums, threads);
  const Machine m(e.formula, input_of(e, e.sums));
  const Array& out = m.arrays[e.formula.outputs[0]];
  for (int64_t j = 0; j < out.size(); ++j) {
    if (value_is_double) {
      static_cast<double*>(value)[j] = out.at[j];
    } else {
      static_cast<float*>(value)[j] = static_cast<float>(out.at[j]);
    }
  }
  for (int k = 1; terms != nullptr && k < e.formula.n_outputs; ++k) terms[k - 1] = *m.arrays[e.formula.outputs[k]].at;
  return invalid;
}

double formula_backward(const Evaluation& e, const void* grad, bool grad_is_double, double* parameter_grad,
                        int threads) {
  std::vector<double> coefficient(size_of(e));
  auto seed = [=](int64_t j) {
    return grad_is_double ? static_cast<const double*>(grad)[j]
                          : static_cast<double>(static_cast<const float*>(grad)[j]);
  };
  derive(e, e.sums, seed, coefficient.data(), parameter_grad);
  if (e.ahead) {
    int64_t counts = 0;  // the first rows have no part in the gradient
    for (int m = 0; m <= TRUE2; ++m) counts += e.op.moment[m] >= 0;
    counts *= e.op.N * e.op.C;
    const double r = ratio(coefficient.data() + counts, e.sums + size_of(e) + counts, size_of(e) - counts);
    if (r == r && !e.written) {  // the gradient was handed out before: make the same one again
      PixelStats op = e.op;
      op.coefficient = e.sums + size_of(e);
      if (op.output.data != nullptr) pixel_stats_backward(op, threads);
    }
    if (r == r) return r;
  }
  PixelStats op = e.op;
  op.coefficient = coefficient.data();
  if (op.output.data != nullptr) pixel_stats_backward(op, threads);
  return 1;
}

}  // namespace segfuse
