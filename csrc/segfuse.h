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

// Probabilities against a hard target, in planes of one (sample, class) each.
struct HardPair {
  int64_t N, C, first;  // classes before `first` are left out; their gradient is 0
  int dims;             // spatial axes, 1 to 3
  int64_t shape[3];     // planes, rows, columns; missing axes come first and are 1
  DType dtype;          // F32 or F64: of p, weight and grad
  bool index;           // code (N, 1, *) holds class numbers; otherwise (N, C, *) holds 0 and 1
  bool plain;           // no pixel is ignored, no weight is given
  bool weight_per_class;
  const void* p;        // (N, C, *)
  const int16_t* code;  // -1: ignored
  const void* weight;   // (N, 1 or C, *) or nullptr
  void* grad;           // (N, C, *): derivative of the plane's sum by p, or nullptr
};

enum ErosionNorm : int { MINMAX, DOUBLE, NONE };

struct Erosion {
  HardPair pair;
  int steps;
  double alpha;
  ErosionNorm norm;
};

// sums [N, C - first]: sum u sum_k k^alpha b_k over the erosions b_k of m (p - y)^2. Writes pair.grad as well.
void erosion_forward(const Erosion& op, double* sums, int threads);

constexpr int MAX_RADII = 64;

struct DiskSums {
  HardPair pair;
  const int16_t* hard;  // (N, 1, *) predicted class numbers; nullptr: p > 1/2 of every channel
  int n_radii;
  int radius[MAX_RADII];     // in pixels, >= 1
  double factor[MAX_RADII];  // of that radius
};

// Most pixels that a ball may have: three counts of them share 64 bits.
constexpr int64_t MAX_BALL = (1 << 21) - 1;

// sums [N, C - first]: sum u (w_f (p - y)^2 p + w_e (p - y)^2 y) with the weights of disk_sums_kernels.cpp. Writes
// pair.grad as well. Returns false, and does nothing, where a ball has more than MAX_BALL pixels.
bool disk_sums_forward(const DiskSums& op, double* sums, int threads);

enum PairwiseMean : int {
  HARMONIC,    // the generalized mean of exponent -1
  POWER_MEAN,  // of any exponent below 0
  LEAST,       // of exponent -inf
  POWER_MIN    // of d / p^4, clipped
};

struct PairwiseHausdorff {
  HardPair pair;
  PairwiseMean mean;
  double exponent, eps;
  const double* points;  // (all, dims) coordinates; nullptr: the pixels of y
  const int64_t* begin;  // [groups + 1] first point of every group
};

// losses [N, C - first]: the weighted Hausdorff distance of every group. Writes pair.grad as well.
void pairwise_hausdorff_forward(const PairwiseHausdorff& op, double* losses, int threads);

const char* isa_used();
const char* isa_found();  // space separated
void huge_pages(void* data, size_t bytes);

}  // namespace segfuse
