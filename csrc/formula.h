// The operations of a formula and their slopes, for host and device.
#pragma once
#include "pixel.h"
#include "segfuse.h"

namespace segfuse {
namespace {

// The order is the contract with ops/formula.py.
enum Op : int32_t {
  ROW,
  PARAMETER,
  SCALAR,
  VECTOR,
  NUMEL,
  SIZE_N,
  SIZE_C,
  CLASS_INDEX,
  ADD,
  SUB,
  MUL,
  DIV,
  POW,
  MAXIMUM,
  MINIMUM,
  GT,
  GE,
  LT,
  LE,
  EQ,
  NE,
  NEG,
  LOG,
  LOG1P,
  EXP,
  EXPM1,
  SQRT,
  ABS,
  TANH,
  SINH,
  COSH,
  LGAMMA,
  WHERE,
  SUM_N,
  SUM_C,
  MAX_C,
  TAIL,
  HEAD,
  DETACH
};

// Below 0 by reflection; at the poles what PyTorch gives.
SEGFUSE_INLINE double digamma(double x) {
  if (x < 0 && x == trunc(x)) return NAN;
  double shift = 0;
  if (x < 0) {
    constexpr double PI = 3.14159265358979323846;
    shift = -PI / tan(PI * (x - trunc(x)));
    x = 1 - x;
  }
  for (; x < 10; ++x) shift -= 1 / x;
  const double r = 1 / (x * x);
  return shift + log(x) - 0.5 / x -
         r * (1. / 12 -
              r * (1. / 120 - r * (1. / 252 - r * (1. / 240 - r * (1. / 132 - r * (691. / 32760 - r / 12))))));
}

SEGFUSE_INLINE double unary(int op, double a) {
  switch (op) {
    case NEG:
      return -a;
    case LOG:
      return log(a);
    case LOG1P:
      return log1p(a);
    case EXP:
      return exp(a);
    case EXPM1:
      return expm1(a);
    case SQRT:
      return sqrt(a);
    case ABS:
      return fabs(a);
    case TANH:
      return tanh(a);
    case SINH:
      return sinh(a);
    case COSH:
      return cosh(a);
    case LGAMMA:
      return lgamma(a);
    default:
      return a;  // DETACH
  }
}

SEGFUSE_INLINE double unary_slope(int op, double a, double out) {
  switch (op) {
    case NEG:
      return -1;
    case LOG:
      return 1 / a;
    case LOG1P:
      return 1 / (1 + a);
    case EXP:
      return out;
    case EXPM1:
      return out + 1;
    case SQRT:
      return 0.5 / out;
    case ABS:
      return a > 0 ? 1 : (a < 0 ? -1 : 0);
    case TANH:
      return 1 - out * out;
    case SINH:
      return cosh(a);
    case COSH:
      return sinh(a);
    case LGAMMA:
      return digamma(a);
    default:
      return 0;
  }
}

SEGFUSE_INLINE double binary(int op, double a, double b) {
  switch (op) {
    case ADD:
      return a + b;
    case SUB:
      return a - b;
    case MUL:
      return a * b;
    case DIV:
      return a / b;
    case POW:
      return pow(a, b);
    case MAXIMUM:
      return a >= b || a != a ? a : b;
    case MINIMUM:
      return a <= b || a != a ? a : b;
    case GT:
      return a > b;
    case GE:
      return a >= b;
    case LT:
      return a < b;
    case LE:
      return a <= b;
    case EQ:
      return a == b;
    default:
      return a != b;
  }
}

// d(out) / da and d(out) / db times d, where d is not 0
SEGFUSE_INLINE void binary_slope(int op, double d, double a, double b, double out, double& by_a, double& by_b) {
  by_a = by_b = 0;
  switch (op) {
    case ADD:
      by_a = d, by_b = d;
      break;
    case SUB:
      by_a = d, by_b = -d;
      break;
    case MUL:
      by_a = d * b, by_b = d * a;
      break;
    case DIV:
      by_a = d / b, by_b = -d * out / b;
      break;
    case POW:
      by_a = b == 0 ? 0 : d * b * pow(a, b - 1);
      if (a != 0 || b < 0) by_b = d * out * log(a);
      break;
    case MAXIMUM:
      (a >= b || a != a ? by_a : by_b) = d;
      break;
    default:
      (a <= b || a != a ? by_a : by_b) = d;
      break;
  }
}

}  // namespace
}  // namespace segfuse
