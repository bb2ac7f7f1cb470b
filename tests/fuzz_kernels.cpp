// Random calls of every kernel behind segfuse.h, without Python: make fuzz-kernels ARGS="-runs=200000".
//
// libFuzzer's bytes choose the op, its sizes, dtypes, strides and settings, and seed the values. A call is one that the
// checks of ops/*.py let through, with memory as backends/cpp/*.py allocates it: every tensor in an allocation of its
// own that ends where the tensor ends, so that AddressSanitizer sees each access beside it. Each call is made with one
// thread and with three, on outputs that hold different rubbish before: the results have the same bits, so no byte is
// left unwritten, and the inputs stay what they were. Values are compared with the reference by fuzz.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

#include "bindings/layout.h"
#include "dtypes.h"
#include "formula.h"
#include "terms.h"

namespace segfuse {  // in place of isa.cpp: every call chooses its instruction set
static int chosen_isa = 0;
int isa() { return chosen_isa; }
bool forked() { return false; }
void huge_pages(void*, size_t) {}
}  // namespace segfuse

using namespace segfuse;

namespace {

using Sizes = std::vector<int64_t>;
const double INF = HUGE_VAL;
const double SPECIAL[] = {0, -0., 1, INF, -INF, NAN, 1e30, -1e30, 3e4, -3e4, 88.5, -104, 1e-40, 1e300, -1e300};
const int64_t LABELS[] = {-1, -100, 255, 127, -128, 32767, 65535, 1ll << 31, 1ll << 62, INT64_MIN, INT64_MAX};
const int64_t BYTES[] = {4, 8, 2, 2, 1, 1, 1, 2, 2, 4, 4, 8, 8};  // of a DType
enum Values { NUMBER, PROBABILITY, SOFT, LABEL, WEIGHT, MASK };   // what a tensor holds

int64_t product(const Sizes& sizes, size_t from = 0) {
  return std::accumulate(sizes.begin() + from, sizes.end(), int64_t(1), std::multiplies<int64_t>());
}

struct Tensor {
  Layout layout;
  char* data = nullptr;
};

Layout dense(const Sizes& sizes, const std::vector<size_t>& outer_to_inner, DType dtype) {
  Layout t{true, dtype, Sizes(sizes.size())};
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= std::max<int64_t>(sizes[outer_to_inner[i]], 1))
    t.strides[outer_to_inner[i]] = step;
  return t;
}
std::vector<size_t> in_order(const Sizes& sizes) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t(0));
  return order;
}
Layout contiguous(const Sizes& sizes, DType dtype) { return dense(sizes, in_order(sizes), dtype); }
// As torch.empty_like: dense, the axes in the order of their strides.
Layout dense_like(const Sizes& sizes, const Layout& like) {
  std::vector<size_t> order = in_order(sizes);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return like.strides[a] > like.strides[b]; });
  return dense(sizes, order, like.dtype);
}

class Call {
  struct Block {
    std::unique_ptr<char[]> data;
    int64_t size;
    std::vector<char> before;
    void remember() { before.assign(data.get(), data.get() + size); }
    bool changed() const { return size != 0 && std::memcmp(data.get(), before.data(), size) != 0; }
  };
  const uint8_t *at_, *end_;
  uint64_t state_ = 0;
  std::vector<Block> inputs_, outputs_, scratch_;

  static char* block(std::vector<Block>& among, int64_t bytes) {
    among.push_back({std::unique_ptr<char[]>(new char[bytes]), bytes, {}});
    return among.back().data.get();
  }
  uint64_t random() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  static void put(char* data, int64_t i, DType dtype, double x, int64_t n) {
    if (dtype == F64) reinterpret_cast<double*>(data)[i] = x;
    if (dtype == F32) reinterpret_cast<float*>(data)[i] = static_cast<float>(x);
    if (dtype == F16) narrow(static_cast<float>(x), reinterpret_cast<segfuse::half*>(data)[i]);
    if (dtype == BF16) narrow(static_cast<float>(x), reinterpret_cast<bfloat16*>(data)[i]);
    if (dtype == BOOL) data[i] = n != 0;
    if (dtype > BOOL) std::memcpy(data + i * BYTES[dtype], &n, BYTES[dtype]);
  }
  static void expect(bool right, const char* wrong) {
    if (right) return;
    std::fprintf(stderr, "fuzz_kernels: %s (instruction set %d)\n", wrong, chosen_isa);
    std::abort();
  }

 public:
  Call(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  // Choices; the first one where the bytes are used up.
  int64_t below(int64_t n) {
    uint64_t x = 0;
    for (int64_t m = n - 1; m > 0; m >>= 8) x = x << 8 | (at_ < end_ ? *at_++ : 0);
    return static_cast<int64_t>(x % static_cast<uint64_t>(n));
  }
  bool chance(int percent) { return below(100) >= 100 - percent; }
  template <typename T>
  T one_of(std::initializer_list<T> list) {
    return list.begin()[below(list.size())];
  }
  int64_t label() { return LABELS[below(std::size(LABELS))]; }
  double special() { return SPECIAL[below(std::size(SPECIAL))]; }
  // Up to `high`, or rarely any that is not negative.
  double number(double high) { return chance(10) ? std::min(std::max(0., special()), 1e300) : high * below(256) / 256; }
  DType floating() { return one_of({F32, F64, F16, BF16}); }
  DType any_dtype() { return static_cast<DType>(below(U64 + 1)); }
  int64_t classes() { return chance(5) ? 1 + below(70) : one_of({2, 1, 3, 4, 5, 8, 9, 17}); }
  // (N, C, *spatial). A tensor without pixels may have very long axes.
  Sizes shape(int64_t axes, int64_t classes, int64_t most) {
    Sizes s = {one_of({1, 2, 3, 0}), classes};
    for (int64_t i = 0; i < axes; ++i)
      s.push_back(chance(10) ? 1 + below(1 << 16) : one_of({5, 1, 2, 3, 8, 9, 17, 0, 4, 33, 63, 65, 130, 15, 7, 6}));
    most = std::min<int64_t>(most, chance(1) ? 150'000 : chance(4) ? 20'000 : 700);
    const auto larger = [](double a, int64_t b) { return a * std::max<int64_t>(b, 1); };
    while (std::accumulate(s.begin(), s.end(), 1., larger) > most) *std::max_element(s.begin() + 1, s.end()) /= 2;
    if (axes > 0 && product(s) == 0 && s.back() > 0 && chance(20)) s.back() += 1 << 30;
    return s;
  }

  // Memory.
  char* scratch(int64_t bytes) { return block(scratch_, bytes); }
  char* output(int64_t n, DType dtype) { return block(outputs_, n * BYTES[dtype]); }
  double* doubles(int64_t n) { return reinterpret_cast<double*>(output(n, F64)); }
  char* input(int64_t n, DType dtype, Values values, int64_t top = 1, int64_t ignore = -1) {
    char* data = block(inputs_, n * BYTES[dtype]);
    if (state_ == 0) state_ = 1 + below(1 << 16);
    const int64_t kind = below(8), often = 1 + below(16);
    for (int64_t i = 0; kind == 7 && i < n * BYTES[dtype]; ++i)
      data[i] = static_cast<char>(dtype == BOOL ? random() & 1 : random());
    for (int64_t i = 0; kind < 7 && i < n; ++i) {
      const double unit = static_cast<double>(random() >> 40) / (1 << 24);
      double x = unit;
      if (values == NUMBER) x = 16 * unit - 8;
      if (values == WEIGHT) x = 4 * unit;
      if (values == LABEL) x = std::floor(unit * (top + 1));
      if (values == MASK || (values == SOFT && dtype > BF16)) x = std::floor(2 * unit);
      int64_t label = static_cast<int64_t>(x);
      if (kind > 3 && static_cast<int64_t>(random() % 16) < often) {
        if (kind == 4 && (values == LABEL || values == SOFT)) x = label = ignore;
        if (kind == 5) label = LABELS[random() % std::size(LABELS)];
        if (kind == 5) x = random() % 2 || values == NUMBER ? SPECIAL[random() % std::size(SPECIAL)] : label;
        if (kind == 6) x = INF;
      }
      put(data, i, dtype, x, label);
    }
    return data;
  }
  const double* coefficients(int64_t n) { return reinterpret_cast<double*>(input(n, F64, NUMBER)); }

  // Contiguous, channels_last, transposed, with gaps, or expanded (stride 0); per_class: (N, C, *spatial), else
  // (N, *spatial) or (N, 1, *spatial), whose channel has stride 0.
  Tensor tensor(Sizes sizes, DType dtype, bool per_class, Values values, int64_t top = 1, int64_t ignore = -1) {
    if (!per_class) sizes[1] = 1;
    std::vector<size_t> order = in_order(sizes);
    const int64_t kind = below(5), n = order.size();
    if (kind == 1 && n > 2) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
    if (kind == 2 && n > 0) std::swap(order[below(n)], order[below(n)]);
    Tensor t{{true, dtype, Sizes(n)}};
    int64_t step = kind == 3 ? 1 + below(3) : 1, room = 1;
    for (int64_t i = n - 1; i >= 0; --i) {
      const int64_t size = sizes[order[i]], stride = kind == 4 && below(2) ? 0 : step;
      t.layout.strides[order[i]] = stride;
      room = size == 0 || room == 0 ? 0 : room + (size - 1) * stride;
      if (stride != 0) step *= std::max<int64_t>(size, 1) + (kind == 3 ? below(3) : 0);
    }
    if (!per_class) t.layout.strides[1] = 0;
    const int64_t offset = chance(50) ? below(16) : 0;
    char* data = input(room + offset, dtype, values, top, ignore);
    t.data = room == 0 && chance(50) ? nullptr : data + offset * BYTES[dtype];
    return t;
  }
  Tensor result(const Sizes& sizes, const Layout& layout) { return {layout, output(product(sizes), layout.dtype)}; }

  // run(threads) returns the number of invalid values, with which outputs mean nothing. Afterwards they are inputs.
  int64_t same(const std::function<int64_t(int)>& run) {
    for (Block& b : inputs_) b.remember();
    for (Block& b : outputs_) std::memset(b.data.get(), 0xa5, b.size);
    const int64_t invalid = run(1);
    for (Block& b : outputs_) b.remember();
    for (Block& b : outputs_) std::memset(b.data.get(), 0x5a, b.size);
    expect(run(3) == invalid, "one thread and three count differently");
    for (Block& b : outputs_)
      expect(invalid != 0 || !b.changed(), "one thread and three differ, or nothing is written");
    for (Block& b : inputs_) expect(!b.changed(), "an input was changed");
    for (Block& b : outputs_) inputs_.push_back(std::move(b));
    outputs_.clear();
    return invalid;
  }
};

// ---------------------------------------------------------------------------------- passes over logits and target

struct Problem {
  Sizes shape;
  int64_t N, C, S, pixels;  // pixels: of all classes
  Activation activation;
  bool exclusive, index;
  int64_t ignore;
  Tensor input, target, weight, mask, distance;
  DType computed;
};

enum Modes { ANY, NATIVE_MAP, ON_WINDOWS, ONE_CLASS };  // which problems are not left to the reference

Problem problem(Call& c, int64_t axes, Modes modes, bool weights) {
  Problem p;
  const int64_t mode = modes == ONE_CLASS ? 2 : c.below(3);  // multiclass, its classes one by one, independent channels
  const bool logits = !c.chance(25) || (modes == NATIVE_MAP && mode == 0);
  p.exclusive = mode == 0;
  p.shape = c.shape(axes, modes == ONE_CLASS ? 1 : c.classes(), 150'000);
  if (mode < 2) p.shape[1] = std::max<int64_t>(p.shape[1], 2);
  p.N = p.shape[0], p.C = p.shape[1], p.S = product(p.shape, 2), p.pixels = product(p.shape);
  p.index = mode < 2 && (c.chance(70) || (modes == ON_WINDOWS && p.exclusive));
  p.activation = !logits ? IDENTITY : p.exclusive ? SOFTMAX : SIGMOID;
  p.ignore = c.chance(50) ? c.label() : c.below(4);
  p.input = c.tensor(p.shape, c.floating(), true, logits ? NUMBER : PROBABILITY);
  p.computed = p.input.layout.dtype == F64 ? F64 : F32;
  p.target = c.tensor(p.shape, c.any_dtype(), !p.index, p.index ? LABEL : SOFT, p.C - 1, p.ignore);
  if (weights && c.chance(40)) p.weight = c.tensor(p.shape, c.any_dtype(), c.below(2), WEIGHT);
  if (c.chance(40)) p.mask = c.tensor(p.shape, c.any_dtype(), mode == 2 && c.below(2), MASK);
  return p;
}

// Which sums a pass makes.
struct Plan {
  int rows = 0, moment[MOMENTS], terms = 0;
  Term term[MAX_TERMS];
};

Plan plan(Call& c, const Problem& p, bool map) {
  Plan plan;
  const bool distance = p.distance.layout.present;
  for (int m = 0; m < MOMENTS; ++m)
    plan.moment[m] = !map && (m < DISTANCE_PRED || distance) && c.chance(40) ? plan.rows++ : -1;
  plan.terms = c.chance(5) ? c.below(MAX_TERMS + 1) : c.below(4);
  for (int t = 0; t < plan.terms; ++t, plan.rows += 2) {
    const double a = c.chance(10) ? c.special() : c.one_of({0., 1., 2., 0.5, 3.7, 0.75});
    const int kind = c.below(map && p.exclusive ? DSC : DSC_PIXEL + 1);
    plan.term[t] = {kind, a, c.number(2), plan.rows, distance && c.below(2)};
  }
  return plan;
}

// As `Pass` of convert.h.
PixelStats pass(const Problem& p, const Plan* plan, const Tensor& output = {}, const Tensor& upstream = {}) {
  PixelStats op{};
  op.N = op.groups = p.N, op.C = p.C;
  op.activation = p.activation, op.index_target = p.index, op.ignore_index = p.ignore;
  const std::pair<const Tensor*, View*> views[] = {
      {&p.input, &op.input},       {&p.target, &op.target}, {&p.weight, &op.weight},  {&p.mask, &op.mask},
      {&p.distance, &op.distance}, {&output, &op.output},   {&upstream, &op.upstream}};
  std::vector<std::pair<Layout, View*>> layouts;
  for (const auto& [tensor, view] : views) layouts.push_back({tensor->layout, view}), view->data = tensor->data;
  set_layout(op, {p.shape.begin() + 2, p.shape.end()}, layouts);
  if (plan == nullptr) std::fill(op.moment, op.moment + MOMENTS, -1);
  if (plan == nullptr) return op;
  op.rows = plan->rows, op.terms = plan->terms;
  std::copy(plan->moment, plan->moment + MOMENTS, op.moment);
  std::copy(plan->term, plan->term + plan->terms, op.term);
  return op;
}

Tensor gradient(Call& c, const Problem& p) { return c.result(p.shape, dense_like(p.shape, p.input.layout)); }

void fuzz_pixel_stats(Call& c) {
  const bool map = c.below(3) == 1, segmented = !map && c.chance(30);
  Problem p = problem(c, c.chance(5) ? c.below(10) : c.below(4), map ? NATIVE_MAP : segmented ? ONE_CLASS : ANY, true);
  if (c.chance(40)) p.distance = c.tensor(p.shape, c.any_dtype(), c.below(2), NUMBER);
  const Plan wanted = plan(c, p, map);
  const int64_t groups = segmented ? 1 + c.below(9) : p.N, numbers = wanted.rows * groups * p.C;
  int32_t* segments = nullptr;
  if (segmented) {
    segments = reinterpret_cast<int32_t*>(c.input(p.N * p.S, I32, LABEL, groups - 1));
    for (int64_t i = 0; i < p.N * p.S; ++i) segments[i] = std::abs(segments[i] % static_cast<int32_t>(groups));
  }
  const auto pass_with = [&](const Tensor& output, const Tensor& upstream, const double* coefficient) {
    PixelStats op = pass(p, &wanted, output, upstream);
    op.segments = segments, op.groups = groups, op.coefficient = coefficient;
    return op;
  };
  Tensor upstream;
  const double* coefficient;
  if (map) {
    Sizes sizes = p.shape;
    if (p.exclusive) sizes[1] = 1;
    Tensor out = c.result(sizes, contiguous(sizes, p.computed));
    if (p.exclusive) out.layout.strides[1] = 0;
    coefficient = c.coefficients(numbers);
    const PixelStats op = pass_with(out, {}, coefficient);
    if (c.same([&](int threads) { return pixel_stats_map(op, threads); }) != 0) return;
    upstream = c.tensor(p.shape, c.chance(30) ? U8 : p.computed, !p.exclusive, NUMBER);
  } else {
    const PixelStats op = pass_with({}, {}, nullptr);
    double* sums = c.doubles(numbers);
    if (c.same([&](int threads) { return pixel_stats_forward(op, sums, threads); }) != 0) return;
    coefficient = c.coefficients(numbers);
  }
  const PixelStats op = pass_with(gradient(c, p), upstream, coefficient);
  c.same([&](int threads) { return pixel_stats_backward(op, threads), 0; });
}

// A program by the rules of the tape in ops/formula.py: arrays of N or 1 rows and 1, C or C - 1 columns.
struct Program {
  std::vector<int32_t> code, outputs;
  std::vector<double> constants;
  std::vector<std::pair<bool, int>> shape;
  int emit(int op, int a, int b, int d, bool n, int c) {
    code.insert(code.end(), {op, a, b, d, n + 2 * c});
    shape.push_back({n, c});
    return static_cast<int>(shape.size()) - 1;
  }
};

Program program(Call& c, int rows, int64_t classes, int parameters) {
  Program f;
  f.constants = {c.number(2)};
  f.emit(SCALAR, 0, 0, 0, false, 0);
  const auto any = [&] { return static_cast<int>(f.shape.size() - 1 - c.below(std::min<int64_t>(f.shape.size(), 9))); };
  const auto total = [&](int row) {
    return f.emit(SUM_C, f.emit(SUM_N, f.emit(ROW, row, 0, 0, true, 1), 0, 0, false, 1), 0, 0, false, 0);
  };
  if (rows > 0 && c.chance(50)) f.emit(DIV, total(c.below(rows)), f.emit(ADD, total(0), 0, 0, false, 0), 0, false, 0);
  for (int64_t steps = c.below(25); steps > 0; --steps) {
    const int op = c.below(DETACH + 1), a = any(), b = any(), d = op == WHERE ? any() : a;
    const auto [n, width] = f.shape[a];
    const int wb = f.shape[b].second, wd = f.shape[d].second, widest = std::max({width, wb, wd});
    const bool fit = (width == 0 || width == widest) && (wb == 0 || wb == widest) && (wd == 0 || wd == widest);
    if (op == ROW && rows > 0) f.emit(op, c.below(rows), 0, 0, true, 1);
    if (op == PARAMETER && parameters > 0) f.emit(op, c.below(parameters), 0, 0, false, 0);
    if (op == SCALAR || op == VECTOR) {
      f.emit(op, f.constants.size(), 0, 0, false, op == VECTOR);
      for (int64_t i = op == VECTOR ? classes : 1; i > 0; --i) f.constants.push_back(c.special());
    }
    if (op >= NUMEL && op <= CLASS_INDEX) f.emit(op, 0, 0, 0, false, op == CLASS_INDEX);
    if (((op >= ADD && op <= NE) || op == WHERE) && fit)
      f.emit(op, a, b, d, n || f.shape[b].first || f.shape[d].first, widest);
    if ((op >= NEG && op <= LGAMMA) || op == DETACH) f.emit(op, a, 0, 0, n, width);
    if (op == SUM_N && n) f.emit(op, a, 0, 0, false, width);
    if ((op == SUM_C && width != 0) || (op == MAX_C && width != 0 && (width == 1 || classes > 1)))
      f.emit(op, a, 0, 0, n, 0);
    if ((op == TAIL || op == HEAD) && width == 1) f.emit(op, a, 0, 0, n, op == TAIL ? 2 : 0);
  }
  f.outputs.push_back(static_cast<int>(f.shape.size()) - 1);
  for (size_t i = 0; i < f.shape.size(); ++i)  // the terms are numbers
    if (!f.shape[i].first && f.shape[i].second == 0 && c.chance(20)) f.outputs.push_back(static_cast<int>(i));
  return f;
}

void fuzz_formula(Call& c) {
  Problem p = problem(c, c.below(4), ANY, true);
  if (c.chance(40)) p.distance = c.tensor(p.shape, c.any_dtype(), c.below(2), NUMBER);
  const Plan wanted = plan(c, p, false);
  const int parameters = c.below(3);
  const Program f = program(c, wanted.rows, p.C, parameters);
  const bool ahead = parameters == 0 && c.below(2), terms = c.below(2), is_double = p.computed == F64;
  bool count_first = p.mask.layout.present || c.below(2);
  for (int m = TRUE_COUNT; m <= TRUE2; ++m) count_first |= wanted.moment[m] >= 0;
  const auto [n, width] = f.shape.back();
  const int64_t values = (n ? p.N : 1) * (width == 0 ? 1 : p.C - (width == 2)), numbers = wanted.rows * p.N * p.C;
  const double* learnt = parameters > 0 ? c.coefficients(parameters) : nullptr;

  double *sums = c.doubles(numbers * (1 + ahead)), *others = terms ? c.doubles(f.outputs.size() - 1) : nullptr;
  char* value = c.output(values, p.computed);
  const Tensor first = ahead ? gradient(c, p) : Tensor{};
  const Formula formula = {f.code.data(), static_cast<int64_t>(f.shape.size()), f.constants.data(), f.outputs.data(),
                           static_cast<int>(f.outputs.size())};
  Evaluation e{pass(p, &wanted, first), formula, sums, learnt, 0, ahead, false, count_first};
  if (c.same([&](int threads) { return formula_forward(e, value, is_double, others, threads); }) != 0) return;

  const bool written = ahead && c.below(2), for_input = written || c.chance(90);
  const Tensor grad = for_input ? gradient(c, p) : Tensor{};
  double *by_parameter = parameters > 0 ? c.doubles(parameters) : nullptr, *factor = c.doubles(1);
  const char* upstream = c.input(values, p.computed, NUMBER);
  e.op = pass(p, &wanted, grad), e.n_parameters = parameters, e.written = written;
  c.same([&](int threads) {
    if (written) std::memcpy(grad.data, first.data, p.pixels * BYTES[grad.layout.dtype]);
    *factor = formula_backward(e, upstream, is_double, by_parameter, threads);
    return 0;
  });
}

void fuzz_lovasz_extension(Call& c) {
  const Problem p = problem(c, c.below(4), ANY, false);
  const bool keep = c.below(2), hinge = !p.exclusive, present = !hinge && c.below(2), per_image = c.below(2);
  std::vector<uint8_t> wanted(p.C);
  for (uint8_t& w : wanted) w = !c.chance(20);
  const int64_t classes = keep ? p.C : std::min<int64_t>(p.C, std::max<int64_t>(4, (p.C + 7) / 8));
  const int64_t room = p.N * classes * p.S, problems = (per_image ? p.N : 1) * p.C;
  char* slope = keep ? c.output(room, p.computed) : c.scratch(room * BYTES[p.computed]);
  double *value = c.doubles(problems), *positives = c.doubles(problems);
  LovaszExtension op{pass(p, nullptr), hinge, per_image, present, wanted.data(), slope, keep, 0, classes};
  if (c.same([&](int threads) { return lovasz_extension_forward(op, value, positives, threads); }) != 0) return;
  if (!keep) return;

  const Layout& input = p.input.layout;
  const bool in_place = input.strides == contiguous(p.shape, F32).strides && input.dtype == p.computed;
  const Tensor grad = gradient(c, p);
  op = {pass(p, nullptr, grad), hinge, per_image, false, nullptr, in_place ? grad.data : slope, true, 0, p.C};
  op.pass.target.data = op.pass.mask.data = nullptr;
  const double* coefficient = c.coefficients(problems);
  c.same([&](int threads) {
    if (in_place) std::memcpy(grad.data, slope, room * BYTES[p.computed]);
    return lovasz_extension_backward(op, coefficient, threads), 0;
  });
}

void fuzz_top_k(Call& c) {
  const int64_t rows = c.one_of({1, 2, 3, 0}), length = c.chance(10) ? c.below(150'000) : c.below(300);
  const DType dtype = c.one_of({F32, F64});
  const double percent = c.chance(20) ? c.one_of({100., 1e-300, 99.999}) : 0.4 * (1 + c.below(250));
  const char* values = c.input(rows * length, dtype, NUMBER);
  const char* valid = c.below(2) ? c.input(rows * length, BOOL, MASK) : nullptr;
  const TopK op{rows,
                length,
                dtype,
                values,
                reinterpret_cast<const uint8_t*>(valid),
                percent,
                reinterpret_cast<uint8_t*>(c.output(rows * length, U8))};
  double *sum = c.doubles(rows), *count = c.doubles(rows);
  c.same([&](int threads) { return top_k_forward(op, sum, count, threads), 0; });
}

// ---------------------------------------------------------------------------------------------- distances and planes

void fuzz_distance_transform_edt(Call& c) {
  const int spatial = 1 + c.below(3), leading = c.below(4);
  Sizes sizes = c.shape(spatial, c.one_of({2, 1, 3}), 150'000), classes;
  if (leading < 2) sizes.erase(sizes.begin(), sizes.begin() + 2 - leading);
  if (leading == 3) sizes.insert(sizes.begin(), c.one_of({2, 1, 0}));
  if (product(sizes) > 1 << 20) sizes.back() = 7;  // the empty axis is gone

  DistanceTransform op{};
  op.mode = static_cast<DistanceMode>(c.below(5));
  op.dtype = op.mode <= SIGNED ? c.any_dtype() : static_cast<DType>(BOOL + c.below(U64 - BOOL + 1));
  const Tensor input = c.tensor(sizes, op.dtype, true, op.dtype <= BF16 ? NUMBER : LABEL, c.one_of({1, 2, 5, 300}));
  op.input = input.data, op.leading = leading, op.leading_shape = sizes.data();
  op.leading_strides = input.layout.strides.data();
  op.classes = 1;
  if (op.mode <= SIGNED && op.dtype > BF16 && c.chance(40)) {
    op.classes = c.one_of({1, 2, 3, 0});
    for (int64_t k = 0; k <= op.classes; ++k) classes.push_back(c.chance(30) ? c.label() : c.below(3));
    op.class_number = classes.data();
  }
  op.threshold = c.chance(20) ? c.one_of({INF, -INF, 1e38}) : 0.5;
  op.squared = c.below(2), op.output_double = c.below(2), op.axes = spatial;
  const bool indices = op.mode != NEAREST_TWO && c.below(2);
  for (int d = 0; d < 3; ++d) op.shape[d] = 1, op.spacing[d] = 1;
  for (int axis = leading + spatial - 1, d = 2; axis >= leading; --axis) {
    if (sizes[axis] == 1 && !indices) continue;  // so that the last axis is as long as it can be
    op.shape[d] = sizes[axis], op.strides[d] = input.layout.strides[axis];
    op.spacing[d--] = c.chance(60) ? 1 : c.one_of({0.5, 2., 1.1, 1e-3, 1e50, 1e-50, 1e9});
  }
  const int64_t pixels = product(sizes) * op.classes;
  op.output = c.output(pixels, op.output_double ? F64 : F32);
  if (op.mode == NEAREST_TWO) op.second = c.output(pixels, op.output_double ? F64 : F32);
  if (indices) op.indices = reinterpret_cast<int32_t*>(c.output(pixels * spatial, I32));
  c.same([&](int threads) { return distance_transform_edt(op, threads); });
}

const int16_t* codes(Call& c, int64_t n, int64_t top, bool ignores) {
  int16_t* code = reinterpret_cast<int16_t*>(c.input(n, I16, LABEL, top, -1));
  for (int64_t i = 0; i < n; ++i) code[i] = code[i] < 0 ? -ignores : static_cast<int16_t>(code[i] % (top + 1));
  return code;
}

// As hard_pair() of ops/_hard_pair.py returns it.
HardPair pair(Call& c, int64_t most) {
  const Sizes shape = c.shape(1 + c.below(3), c.classes(), most);
  const int64_t C = shape[1], S = product(shape, 2), pixels = shape[0] * S, all = pixels * C;
  const bool index = C > 1 && c.below(2), ignores = c.below(2), weights = c.chance(40), per_class = C > 1 && c.below(2);
  const DType dtype = c.one_of({F32, F64});
  char *p = c.input(all, dtype, PROBABILITY), *weight = nullptr, *grad = c.below(2) ? c.output(all, dtype) : nullptr;
  const int16_t* code = codes(c, index ? pixels : all, index ? C - 1 : 1, ignores);
  for (int64_t i = 0; i < all; ++i)  // finite where ignored
    if (code[index ? i / S / C * S + i % S : i] < 0) std::memset(p + i * BYTES[dtype], 0, BYTES[dtype]);
  if (weights) weight = c.input(per_class ? all : pixels, dtype, WEIGHT);
  for (int64_t i = 1; weights && i <= (per_class ? all : pixels); ++i)
    weight[i * BYTES[dtype] - 1] &= 0x7f;  // the sign
  const auto address = [](const void* x) { return reinterpret_cast<uintptr_t>(x); };
  return hard_pair(shape, C > 1 && c.below(2), dtype, index, !ignores && !weights, weights && per_class, address(p),
                   address(code), address(weight), address(grad));
}
int64_t groups(const HardPair& p) { return p.N * (p.C - p.first); }

void fuzz_erosion(Call& c) {
  const int steps = c.chance(5) ? 1 + c.below(300) : 1 + c.below(8);
  const Erosion op{pair(c, steps > 8 ? 500 : 150'000), steps, c.one_of({2., 0., -16., 16., 0.5}),
                   static_cast<ErosionNorm>(c.below(3))};
  double* sums = c.doubles(groups(op.pair));
  c.same([&](int threads) { return erosion_forward(op, sums, threads), 0; });
}

void fuzz_disk_sums(Call& c) {
  std::vector<int> radii(c.chance(5) ? 1 + c.below(MAX_RADII) : 1 + c.below(4));
  const HardPair p = pair(c, radii.size() > 4 ? 500 : 20'000);
  const int most = p.dims == 1 ? 5000 : p.dims == 2 ? 816 : 79;
  for (int& r : radii) r = std::min<int>(most, 1 + (c.chance(10) ? c.below(100) : c.below(8)));
  if (c.chance(2)) radii[0] = most;
  const bool argmax = p.index && c.below(2);
  const int16_t* hard = argmax ? codes(c, p.N * p.shape[0] * p.shape[1] * p.shape[2], p.C - 1, false) : nullptr;
  const DiskSums op = disk_sums(p, reinterpret_cast<uintptr_t>(hard), radii, c.one_of({2., 0., -16., 16.}));
  double* sums = c.doubles(groups(p));
  c.same([&](int threads) { return disk_sums_forward(op, sums, threads) ? 0 : threads; });
}

void fuzz_pairwise_hausdorff(Call& c) {
  PairwiseHausdorff op{
      pair(c, c.chance(4) ? 4000 : 300), static_cast<PairwiseMean>(c.below(4)), -1, 0, nullptr, nullptr};
  if (op.mean == POWER_MEAN) op.exponent = c.one_of({-2., -0.01, -9., -1e300});
  if (op.mean == LEAST) op.exponent = -INF;
  op.eps = c.one_of({1e-6, 1e-12, 1., 1e300});
  Sizes begin(groups(op.pair) + 1);
  if (c.chance(40)) {
    for (size_t i = 1; i < begin.size(); ++i) begin[i] = begin[i - 1] + c.one_of({0, 1, 2, 17, 40});
    const int64_t n = (begin.back() + 1) * op.pair.dims;  // one to spare: never a null pointer
    double* points = reinterpret_cast<double*>(c.input(n, F64, NUMBER));
    for (int64_t i = 0; i < n; ++i) points[i] = std::isfinite(points[i]) ? points[i] : 0;
    op.points = points;
  }
  op.begin = begin.data();
  double* losses = c.doubles(groups(op.pair));
  c.same([&](int threads) { return pairwise_hausdorff_forward(op, losses, threads), 0; });
}

// ------------------------------------------------------------------------------------------------------------ windows

Windows window(Call& c, const Sizes& shape) {
  const bool valid = c.below(2);
  const double sigma = c.one_of({1.5, 0.3, 8., INF});  // of a box
  std::vector<std::vector<double>> weights;
  for (size_t d = 2; d < shape.size(); ++d) {
    int64_t r = c.chance(5) ? c.below(MAX_RADIUS + 1) : c.one_of({1, 0, 2, 3, 5});
    if (valid && shape[d] > 0) r = std::min(r, (shape[d] - 1) / 2);
    std::vector<double> w;
    for (int64_t k = -r; k <= r; ++k) w.push_back(std::exp(-(k * k) / (2 * sigma * sigma)));
    const double total = std::accumulate(w.begin(), w.end(), 0.);
    for (double& x : w) x /= total;
    weights.push_back(w);
  }
  return windows(shape, weights, valid);
}

View view(const Tensor& t) {
  View v = window_view(t.layout);
  v.data = t.data;
  return v;
}

void fuzz_local_moments(Call& c) {
  const Sizes shape = c.shape(1 + c.below(3), c.one_of({1, 2, 3}), 150'000);
  const DType dtype = c.floating(), computed = dtype == F64 ? F64 : F32;
  const Tensor a = c.tensor(shape, dtype, true, NUMBER);
  const int rows = c.below(2) ? 5 : 2;
  LocalMoments op{};
  op.windows = window(c, shape);
  op.a = view(a);
  if (rows == 5) op.b = view(c.tensor(shape, computed == F64 ? F64 : c.one_of({F32, F16, BF16}), true, NUMBER));
  int64_t centres = product(shape) == 0 ? 0 : shape[0] * shape[1];
  for (int d = 0; d < 3; ++d) centres *= op.windows.shape[d] - 2 * op.windows.radius[d] * op.windows.valid;
  for (int i = 0; i < rows; ++i) op.row[i] = c.output(centres, computed);
  c.same([&](int threads) { return local_moments_forward(op, threads), 0; });

  for (int i = 0; i < rows; ++i) op.row[i] = c.chance(20) ? nullptr : c.input(centres, computed, NUMBER);
  op.output = view(c.result(shape, dense_like(shape, a.layout)));
  c.same([&](int threads) { return local_moments_backward(op, threads), 0; });
}

// The buffers of a loss on windows are room for softmax alone.
WindowLoss window_loss(Call& c, const Problem& p, bool entropy) {
  WindowLoss loss{};
  loss.windows = window(c, p.shape);
  loss.activation = p.activation, loss.exclusive = p.exclusive;
  loss.index_target = p.index, loss.ignore_index = p.ignore;
  loss.first_class = p.C > 1 && c.below(2);
  loss.input = view(p.input), loss.target = view(p.target), loss.weight = view(p.weight), loss.mask = view(p.mask);
  if (p.activation != SOFTMAX) return loss;
  const int64_t bytes = p.N * p.S * BYTES[p.computed];
  loss.probability = c.scratch(bytes * p.C), loss.grad_probability = c.scratch(bytes * p.C);
  if (entropy) loss.entropy = c.scratch(bytes), loss.grad_entropy = c.scratch(bytes);
  return loss;
}

// No sweep visits the classes that are left out: their gradient is 0 before.
void clear_gradient(const WindowLoss& loss, const Problem& p) {
  if (loss.output.data != nullptr && loss.first_class > 0 && p.activation != SOFTMAX)
    std::memset(loss.output.data, 0, p.pixels * BYTES[loss.output.dtype]);
}

void fuzz_ssim(Call& c) {
  const Problem p = problem(c, 1 + c.below(3), ON_WINDOWS, true);
  Ssim op{window_loss(c, p, false), c.number(1e-3), c.number(1e-3), c.below(2) != 0};
  double* sums = c.doubles(2 * p.N * p.C);
  if (p.activation != SOFTMAX && p.input.layout.dtype <= F64 && c.below(2)) op.loss.output = view(gradient(c, p));
  if (c.same([&](int threads) { return clear_gradient(op.loss, p), ssim_forward(op, sums, threads); }) != 0) return;
  op.loss.output = view(gradient(c, p));
  op.loss.coefficient = c.coefficients(p.N * p.C);
  c.same([&](int threads) { return clear_gradient(op.loss, p), ssim_backward(op, threads), 0; });
}

void fuzz_cmssl(Call& c) {
  const Problem p = problem(c, 1 + c.below(3), ON_WINDOWS, true);
  const WindowLoss loss = window_loss(c, p, true);
  const int64_t bytes = p.pixels * BYTES[p.computed];
  double *threshold = c.doubles(p.N * p.C), *sums = c.doubles(2 * p.N * p.C);
  const auto scope = static_cast<Scope>(c.below(4));
  Cmssl op{loss,  c.number(0.1), c.number(1e-6), scope == FIXED ? c.number(1) : 0.01 * c.below(101),
           scope, false,         nullptr,        threshold};
  op.error = c.scratch(bytes);
  if (c.same([&](int threads) {
        if (loss.windows.valid) std::memset(op.error, 0, bytes);
        return cmssl_forward(op, sums, threads);
      }) != 0)
    return;
  op.loss.output = view(gradient(c, p));
  op.loss.coefficient = c.coefficients(p.N * p.C);
  op.detach = c.below(2), op.error = nullptr;
  c.same([&](int threads) { return clear_gradient(op.loss, p), cmssl_backward(op, threads), 0; });
}

struct Target {
  const char* name;
  void (*fuzz)(Call&);
  int64_t calls;
} targets[] = {{"pixel_stats", fuzz_pixel_stats, 0},
               {"formula", fuzz_formula, 0},
               {"lovasz_extension", fuzz_lovasz_extension, 0},
               {"top_k", fuzz_top_k, 0},
               {"distance_transform_edt", fuzz_distance_transform_edt, 0},
               {"erosion", fuzz_erosion, 0},
               {"disk_sums", fuzz_disk_sums, 0},
               {"pairwise_hausdorff", fuzz_pairwise_hausdorff, 0},
               {"local_moments", fuzz_local_moments, 0},
               {"ssim", fuzz_ssim, 0},
               {"cmssl", fuzz_cmssl, 0}};

int64_t instruction_sets() {  // as isa.cpp
#ifdef SEGFUSE_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  return 1 + avx2 + (avx2 && avx512);
#else
  return 1;
#endif
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  return std::atexit([] {
    for (const Target& t : targets) std::fprintf(stderr, "%-24s%9lld calls\n", t.name, static_cast<long long>(t.calls));
  });
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int64_t sets = instruction_sets();
  Call c(data, size);
  Target& target = targets[c.below(std::size(targets))];
  chosen_isa = static_cast<int>(c.below(sets));
  ++target.calls;
  try {
    target.fuzz(c);
  } catch (const std::length_error&) {  // more axes than a kernel walks: an error in Python too
  }
  return 0;
}
