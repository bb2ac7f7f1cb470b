// The native interface of segfuse: pointers, sizes and strides. No Python, no torch, no globals.
//
// Shapes are N (samples), C (classes) and any number of spatial axes; S is the product of the spatial axes.
// Symbols follow the field: p probability, y target in [0, 1], m in {0, 1} valid, u = m * weight.
#pragma once
#include <cstddef>
#include <cstdint>

namespace segfuse {

enum DType : int { F32, F64, F16, BF16, BOOL, U8, I8, I16, U16, I32, U32, I64, U64 };
enum Activation : int { SIGMOID, SOFTMAX, IDENTITY };

// Sums per (sample, class). The order is the contract with ops/pixel_stats.py.
enum Moment : int {
  COUNT,       // sum m
  TRUE_COUNT,  // sum m y
  WEIGHT,      // sum u
  TRUE,        // sum u y
  TRUE2,       // sum u y^2
  PRED,        // sum u p
  PRED2,       // sum u p^2
  TP,          // sum u p y
  TP2,         // sum u p^2 y
  L1,          // sum u |p - y|
  SQ_TRUE,     // sum u y (p - y)^2
  SQ_FALSE,    // sum u (1 - y) (p - y)^2
  MOMENTS
};

// A term f is summed twice: `row` holds sum u y f(p), `row + 1` holds sum u (1 - y) f(1 - p).
// Under softmax the terms made of logarithms have no second part; that row is 0.
enum TermKind : int {
  FOCAL,      // (1-p)^a (-log p)                       a = 0 is cross-entropy
  FOCAL_ALL,  // the same without the factors y, 1 - y  (label smoothing)
  POWER,      // l^a with l the cross-entropy of the pixel
  DSC,        // q = (1-p)^a p                          second part: (1 - y) q
  DSC_PIXEL   // 1 - (2 q y + b) / (q + y + b)          second part: (1 - y) times the same
};

constexpr int MAX_DIMS = 8;
constexpr int MAX_TERMS = 16;

struct Term {
  int kind;
  double a, b;
  int row;
};

// A strided tensor; strides count elements. data == nullptr: absent.
struct View {
  char* data = nullptr;
  DType dtype = F32;
  int64_t batch = 0, channel = 0, spatial[MAX_DIMS] = {};
};

struct PixelStats {
  int64_t N, C, S;
  int dims;                 // spatial axes after merging those that every view walks as one
  int64_t shape[MAX_DIMS];  // their lengths
  Activation activation;
  bool index_target;  // target (N, *) holds class numbers; otherwise (N, C, *) holds y itself
  int64_t ignore_index;
  int rows;             // K
  int moment[MOMENTS];  // row of each sum, -1 when it is not wanted
  int terms;
  Term term[MAX_TERMS];
  View input, target, weight, mask;
  View output;                // gradient (N, C, *) or loss map
  View upstream;              // gradient of the loss map, or absent
  const double* coefficient;  // [K, N, C], derivative of the loss by each sum
};

// sums [K, N, C]; with `output` and `coefficient` the same pass writes the gradient as well. Returns the number of
// targets that are neither valid nor ignored, plus the number of negative weights.
int64_t pixel_stats_forward(const PixelStats& op, double* sums, int threads);
// output = d(sum_k coefficient_k sums_k) / d(input); with `upstream` each pixel's part is multiplied by it.
void pixel_stats_backward(const PixelStats& op, int threads);
// output = sum over terms of coefficient * (the pixel's part of the term); 0 at ignored pixels.
int64_t pixel_stats_map(const PixelStats& op, int threads);

// A formula is a list of instructions on arrays of shape (N or 1, C or C-1 or 1); see formula.cpp.
struct Formula {
  const int32_t* code;  // [length, 5]: op, a, b, c, shape
  int64_t length;
  const double* constants;
  const int32_t* outputs;  // instruction numbers; the first is the loss
  int n_outputs;
};

// A whole loss: the pass that makes the sums, and the formula on them.
struct Evaluation {
  PixelStats op;
  Formula formula;
  double* sums;  // [K, N, C]; followed by as many `assumed` coefficients where the gradient is written ahead
  const double* parameters;  // learnable scalars of the formula, or nullptr
  int n_parameters;
  bool ahead;        // op.output is written in the forward pass, with coefficients that follow from the target alone
  bool written;      // ... and op.output still holds it
  bool count_first;  // that takes a pass over the target; otherwise every pixel is taken to be valid
};

// value: the loss in its own shape; terms: the other outputs, scalars, or nullptr. Returns as pixel_stats_forward.
int64_t formula_forward(const Evaluation& e, void* value, bool value_is_double, double* terms, int threads);
// op.output and parameter_grad from the gradient of the loss. Where the gradient was written ahead it stays, and the
// factor that makes it right is returned; where there is no such factor it is written again and 1 is returned.
double formula_backward(const Evaluation& e, const void* grad, bool grad_is_double, double* parameter_grad,
                        int threads);

// Windows along up to three spatial axes, outer to inner; an axis that is missing in front has length 1 and radius 0.
// Weights of an axis are symmetric and add up to 1. Pixels outside the image are 0.
constexpr int MAX_RADIUS = 32;

struct Windows {
  int64_t N, C, shape[3];
  int radius[3];
  double weight[3][2 * MAX_RADIUS + 1];
  bool valid;  // only windows that lie inside the image
};

// A window belongs to its centre pixel. Results are [N, C, centres], dense, float64 for a float64 input, else float32.
struct LocalMoments {
  Windows windows;
  View a, b;     // b: the second image, or absent
  View output;   // gradient of a
  void* row[5];  // mean and variance of a, mean and variance of b, covariance; backward: their gradients or nullptr
};

void local_moments_forward(const LocalMoments& op, int threads);
void local_moments_backward(const LocalMoments& op, int threads);

// What the losses on windows have in common. An ignored pixel is p = y = 0 in the windows of its neighbours, like the
// padding, and its own window does not count. Buffers have the type of computation.
struct WindowLoss {
  Windows windows;
  Activation activation;
  bool exclusive;     // a pixel has one cross-entropy, that of its class
  bool index_target;  // exclusive classes need one
  int64_t ignore_index;
  int64_t first_class;  // 1 leaves out the background
  View input, target, weight, mask;
  View output;                // gradient (N, C, *)
  const double* coefficient;  // [N, C], derivative of the loss by the sum of each group
  void* probability;          // [N, C, S], buffer of softmax
  void* entropy;              // [N, S], buffer of softmax: -log p of the target class
  void* grad_probability;     // [N, C, S], buffer of the backward of softmax
  void* grad_entropy;         // [N, S], likewise
};

enum Scope : int { BATCH, SAMPLE, CLASS, FIXED };

struct Cmssl {
  WindowLoss loss;
  double c4, variance_eps, beta;
  Scope scope;        // of the largest e; FIXED: beta is the threshold itself
  bool detach;        // e is a constant
  void* error;        // [N, C, S], buffer of the forward pass: e
  double* threshold;  // [N, C]
};

// sums [2, N, C]: sum u f e l and sum f. Returns the number of targets and weights out of range.
int64_t cmssl_forward(const Cmssl& op, double* sums, int threads);
void cmssl_backward(const Cmssl& op, int threads);

struct Ssim {
  WindowLoss loss;
  double c1, c2;
  bool contrast;  // without the luminance factor
};

// sums [2, N, C]: sum u SSIM and sum u over the windows; with `output` the same sweep writes the gradient. Returns as
// above.
int64_t ssim_forward(const Ssim& op, double* sums, int threads);
void ssim_backward(const Ssim& op, int threads);

const char* isa_used();
const char* isa_found();  // space separated
void huge_pages(void* data, size_t bytes);

}  // namespace segfuse
