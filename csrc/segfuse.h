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
  COUNT,          // sum m
  TRUE_COUNT,     // sum m y
  WEIGHT,         // sum u
  TRUE,           // sum u y
  TRUE2,          // sum u y^2
  PRED,           // sum u p
  PRED2,          // sum u p^2
  TP,             // sum u p y
  TP2,            // sum u p^2 y
  L1,             // sum u |p - y|
  SQ_TRUE,        // sum u y (p - y)^2
  SQ_FALSE,       // sum u (1 - y) (p - y)^2
  DISTANCE_PRED,  // sum u d p          d: the distance map
  DISTANCE_SQ,    // sum u d (p - y)^2
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
  bool mapped;  // u d instead of u; under softmax d is the same for every class
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
  View input, target, weight, mask, distance;
  View output;                // gradient (N, C, *) or loss map
  View upstream;              // gradient of the loss map, or absent
  const double* coefficient;  // [K, groups, C], derivative of the loss by each sum
  int64_t groups;             // N: every sample is a group; else `segments` says which group a pixel is in
  const int32_t* segments;    // [N, S] or nullptr; for one class
};

// sums [K, groups, C]; with `output` and `coefficient` the same pass writes the gradient as well. Returns the number of
// targets that are neither valid nor ignored, plus the number of negative weights.
int64_t pixel_stats_forward(const PixelStats& op, double* sums, int threads);
// output = d(sum_k coefficient_k sums_k) / d(input); with `upstream` each pixel's part is multiplied by it.
void pixel_stats_backward(const PixelStats& op, int threads);
// output = sum over terms of coefficient * (the pixel's part of the term); 0 at ignored pixels.
int64_t pixel_stats_map(const PixelStats& op, int threads);

// The Lovasz extension of the Jaccard loss: per problem sum_k e_(k) (J_k - J_(k-1)), errors e sorted descending.
// A problem is one class of one sample, or of the whole batch.
struct LovaszExtension {
  PixelStats pass;        // sizes and views of input, target, mask and, backward, the gradient; it makes no sums
  bool hinge;             // e = max(0, 1 - z (2y - 1)) of a score z; otherwise e = |y - p|
  bool per_image;         // P = N problems for each class; otherwise P = 1
  bool present;           // a class without a pixel in a problem has loss 0 there and no gradient
  const uint8_t* wanted;  // [C]; the same for classes that are not wanted
  void* slope;            // [N, classes, S] in float (double for double logits): d loss / dz (hinge) or d loss / dp
  // For a gradient slopes are kept, of all C classes. Otherwise `slope` is room for some of them at a time.
  bool keep_slopes = true;
  int64_t first = 0, classes = 0;  // those that `slope` holds
};

// value [P, C]: the losses; positives [P, C]: the pixels of the class. op.slope is written. Returns the number of
// targets that are neither 0, 1, a class number nor ignored.
int64_t lovasz_extension_forward(const LovaszExtension& op, double* value, double* positives, int threads);
// op.pass.output = d(sum coefficient * value) / d(input), coefficient [P, C]. The output may lie on top of op.slope.
void lovasz_extension_backward(const LovaszExtension& op, const double* coefficient, int threads);

// The `percent` largest values of every row, at least one of them.
struct TopK {
  int64_t rows, length;
  DType dtype;           // F32 or F64
  const void* values;    // [rows, length]
  const uint8_t* valid;  // the same shape, nonzero where a value takes part; nullptr: everywhere
  double percent;
  uint8_t* chosen;  // the same shape, 1 where a value is chosen
};

// sum [rows] and count [rows] of the chosen values. op.chosen is written.
void top_k_forward(const TopK& op, double* sum, double* count, int threads);

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

enum DistanceMode : int { INSIDE, TWO_SIDED, SIGNED, LABELS, NEAREST_TWO };

// Exact Euclidean distances in a batch of masks or label maps with one to three spatial axes (missing ones have
// length 1). The output is contiguous, (samples, classes, *shape).
struct DistanceTransform {
  const char* input;
  DType dtype;
  int leading;  // axes of the batch, of any strides
  const int64_t *leading_shape, *leading_strides;
  int64_t shape[3], strides[3];
  double spacing[3];
  DistanceMode mode;
  // What is foreground: input == class_number[c], input > threshold (floating-point input), or input != 0.
  int64_t classes;  // 1 without class_number
  const int64_t* class_number;
  double threshold;
  bool squared;
  bool output_double;
  void* output;
  void* second;      // NEAREST_TWO: distance to the second nearest instance
  int32_t* indices;  // (axes, samples, classes, *shape), the nearest pixel, or nullptr
  int axes;          // spatial axes that have indices, the last ones
};

// Returns the number of instance numbers that do not fit 32 bits; the output then means nothing. Otherwise 0.
int64_t distance_transform_edt(const DistanceTransform& op, int threads);
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
