#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>

#include "../cpp/threads.h"
#include "../segfuse.h"

namespace py = pybind11;
using namespace segfuse;

namespace {

// (dtype, strides of N, C and every spatial axis); None is absent
struct Layout {
  bool present = false;
  DType dtype = F32;
  std::vector<int64_t> strides;
};

Layout layout(const py::handle& h) {
  if (h.is_none()) return {};
  const auto parts = h.cast<py::tuple>();
  return {true, static_cast<DType>(parts[0].cast<int>()), parts[1].cast<std::vector<int64_t>>()};
}

// Merges neighbouring spatial axes that every tensor walks as one, and fills shape and strides.
void set_layout(PixelStats& op, const std::vector<int64_t>& spatial,
                const std::vector<std::pair<Layout, View*>>& tensors) {
  op.dims = 0;
  op.S = 1;
  for (int64_t side : spatial) op.S *= side;
  size_t previous = spatial.size();
  for (size_t d = 0; d < spatial.size(); ++d) {
    if (spatial[d] == 1) continue;
    bool merge = previous < spatial.size();
    for (const auto& [t, view] : tensors)
      if (t.present && merge) merge = t.strides[2 + previous] == t.strides[2 + d] * spatial[d];
    if (!merge && op.dims == MAX_DIMS) throw std::length_error("more than 8 spatial axes that cannot be merged");
    if (!merge) op.shape[op.dims++] = 1;
    op.shape[op.dims - 1] *= spatial[d];
    for (const auto& [t, view] : tensors)
      if (t.present) view->spatial[op.dims - 1] = t.strides[2 + d];
    previous = d;
  }
  const bool one = op.dims == 0;
  if (one) op.dims = 1, op.shape[0] = 1;
  for (const auto& [t, view] : tensors) {
    if (!t.present) continue;
    view->dtype = t.dtype;
    view->batch = t.strides[0];
    view->channel = t.strides[1];
    if (one) view->spatial[0] = 1;
  }
}

// Everything about a call but its pointers: the same whenever the same loss meets tensors of the same kind.
struct Pass {
  PixelStats op{};

  Pass(const std::vector<int>& moments, const std::vector<std::tuple<int, double, double, int>>& terms, int rows,
       const std::vector<int64_t>& shape, int activation, bool index_target, int64_t ignore_index,
       const py::object& input, const py::object& target, const py::object& weight, const py::object& mask,
       const py::object& output, const py::object& upstream) {
    if (moments.size() != MOMENTS) throw std::length_error("a plan names the row of every moment");
    if (terms.size() > MAX_TERMS) throw std::length_error("more than 16 pixel terms in one pass");
    op.rows = rows;
    for (int m = 0; m < MOMENTS; ++m) op.moment[m] = moments[m];
    for (const auto& [kind, a, b, row] : terms) op.term[op.terms++] = {kind, a, b, row};
    op.N = shape[0];
    op.C = shape[1];
    op.activation = static_cast<Activation>(activation);
    op.index_target = index_target;
    op.ignore_index = ignore_index;
    set_layout(op, {shape.begin() + 2, shape.end()},
               {{layout(input), &op.input},
                {layout(target), &op.target},
                {layout(weight), &op.weight},
                {layout(mask), &op.mask},
                {layout(output), &op.output},
                {layout(upstream), &op.upstream}});
  }

  PixelStats with(uintptr_t input, uintptr_t target, uintptr_t weight, uintptr_t mask, uintptr_t output,
                  uintptr_t upstream, uintptr_t coefficient) const {
    PixelStats call = op;
    call.input.data = reinterpret_cast<char*>(input);
    call.target.data = reinterpret_cast<char*>(target);
    call.weight.data = reinterpret_cast<char*>(weight);
    call.mask.data = reinterpret_cast<char*>(mask);
    call.output.data = reinterpret_cast<char*>(output);
    call.upstream.data = reinterpret_cast<char*>(upstream);
    call.coefficient = reinterpret_cast<const double*>(coefficient);
    return call;
  }
};

struct Code {
  std::vector<int32_t> code, outputs;
  std::vector<double> constants;
  Formula formula() const {
    return {code.data(), static_cast<int64_t>(code.size() / 5), constants.data(), outputs.data(),
            static_cast<int>(outputs.size())};
  }
};

template <typename T>
T* pointer(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

HardPair hard_pair(const std::vector<int64_t>& shape, int64_t first, int dtype, bool index, bool plain,
                   bool weight_per_class, uintptr_t p, uintptr_t code, uintptr_t weight, uintptr_t grad) {
  if (shape.size() < 3 || shape.size() > 5) throw std::length_error("a pair has 1 to 3 spatial axes");
  const int dims = static_cast<int>(shape.size()) - 2;
  HardPair pair{shape[0],
                shape[1],
                first,
                dims,
                {1, 1, 1},
                static_cast<DType>(dtype),
                index,
                plain,
                weight_per_class,
                pointer<void>(p),
                pointer<int16_t>(code),
                pointer<void>(weight),
                pointer<void>(grad)};
  for (int d = 0; d < dims; ++d) pair.shape[3 - dims + d] = shape[2 + d];
  return pair;
}

}  // namespace

PYBIND11_MODULE(_cpp, m) {
  using namespace py::literals;
  forked();  // registers the fork handler

  py::class_<Pass>(m, "Pass").def(
      py::init<const std::vector<int>&, const std::vector<std::tuple<int, double, double, int>>&, int,
               const std::vector<int64_t>&, int, bool, int64_t, const py::object&, const py::object&, const py::object&,
               const py::object&, const py::object&, const py::object&>(),
      py::kw_only(), "moments"_a, "terms"_a, "rows"_a, "shape"_a, "activation"_a, "index_target"_a, "ignore_index"_a,
      "input"_a, "target"_a, "weight"_a, "mask"_a, "output"_a, "upstream"_a);
  py::class_<Code>(m, "Code").def(
      py::init([](std::vector<int32_t> code, std::vector<double> constants, std::vector<int32_t> outputs) {
        return Code{std::move(code), std::move(outputs), std::move(constants)};
      }),
      py::kw_only(), "code"_a, "constants"_a, "outputs"_a);

  m.def(
      "pixel_stats_forward",
      [](const Pass& layout, uintptr_t input, uintptr_t target, uintptr_t weight, uintptr_t mask, uintptr_t sums,
         int threads) {
        py::gil_scoped_release release;
        return pixel_stats_forward(layout.with(input, target, weight, mask, 0, 0, 0), pointer<double>(sums), threads);
      },
      py::kw_only(), "layout"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "sums"_a, "threads"_a);

  m.def(
      "pixel_stats_backward",
      [](const Pass& layout, uintptr_t input, uintptr_t target, uintptr_t weight, uintptr_t mask, uintptr_t grad_input,
         uintptr_t upstream, uintptr_t coefficient, int threads) {
        py::gil_scoped_release release;
        pixel_stats_backward(layout.with(input, target, weight, mask, grad_input, upstream, coefficient), threads);
      },
      py::kw_only(), "layout"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "grad_input"_a, "upstream"_a,
      "coefficient"_a, "threads"_a);

  m.def(
      "pixel_stats_map",
      [](const Pass& layout, uintptr_t input, uintptr_t target, uintptr_t weight, uintptr_t mask, uintptr_t loss_map,
         uintptr_t coefficient, int threads) {
        py::gil_scoped_release release;
        return pixel_stats_map(layout.with(input, target, weight, mask, loss_map, 0, coefficient), threads);
      },
      py::kw_only(), "layout"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "loss_map"_a, "coefficient"_a,
      "threads"_a);

  m.def(
      "formula_forward",
      [](const Pass& layout, const Code& code, uintptr_t input, uintptr_t target, uintptr_t weight, uintptr_t mask,
         uintptr_t sums, uintptr_t parameters, uintptr_t grad_input, bool count_first, uintptr_t value,
         bool value_is_double, uintptr_t terms, int threads) {
        py::gil_scoped_release release;
        const Evaluation e{layout.with(input, target, weight, mask, grad_input, 0, 0),
                           code.formula(),
                           pointer<double>(sums),
                           pointer<double>(parameters),
                           0,
                           grad_input != 0,
                           false,
                           count_first};
        return formula_forward(e, pointer<void>(value), value_is_double, pointer<double>(terms), threads);
      },
      py::kw_only(), "layout"_a, "code"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "sums"_a, "parameters"_a,
      "grad_input"_a, "count_first"_a, "value"_a, "value_is_double"_a, "terms"_a, "threads"_a);

  m.def(
      "formula_backward",
      [](const Pass& layout, const Code& code, uintptr_t input, uintptr_t target, uintptr_t weight, uintptr_t mask,
         uintptr_t sums, uintptr_t parameters, uintptr_t grad_input, bool ahead, bool written, uintptr_t grad,
         bool grad_is_double, uintptr_t parameter_grad, int n_parameters, int threads) {
        py::gil_scoped_release release;
        const Evaluation e{layout.with(input, target, weight, mask, grad_input, 0, 0),
                           code.formula(),
                           pointer<double>(sums),
                           pointer<double>(parameters),
                           n_parameters,
                           ahead,
                           written,
                           false};
        return formula_backward(e, pointer<void>(grad), grad_is_double, pointer<double>(parameter_grad), threads);
      },
      py::kw_only(), "layout"_a, "code"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "sums"_a, "parameters"_a,
      "grad_input"_a, "ahead"_a, "written"_a, "grad"_a, "grad_is_double"_a, "parameter_grad"_a, "n_parameters"_a,
      "threads"_a);

  py::class_<HardPair>(m, "HardPair")
      .def(py::init(&hard_pair), py::kw_only(), "shape"_a, "first"_a, "dtype"_a, "index"_a, "plain"_a,
           "weight_per_class"_a, "p"_a, "code"_a, "weight"_a, "grad"_a);
  m.def(
      "erosion_forward",
      [](const HardPair& pair, int steps, double alpha, int norm, uintptr_t sums, int threads) {
        py::gil_scoped_release release;
        erosion_forward({pair, steps, alpha, static_cast<ErosionNorm>(norm)}, pointer<double>(sums), threads);
      },
      py::kw_only(), "pair"_a, "steps"_a, "alpha"_a, "norm"_a, "sums"_a, "threads"_a);

  m.def(
      "disk_sums_forward",
      [](const HardPair& pair, uintptr_t hard, const std::vector<int>& radii, double alpha, uintptr_t sums,
         int threads) {
        if (radii.size() > MAX_RADII) throw std::length_error("more than 64 radii");
        DiskSums op{pair, pointer<int16_t>(hard), static_cast<int>(radii.size()), {}, {}};
        for (size_t i = 0; i < radii.size(); ++i) op.radius[i] = radii[i], op.factor[i] = std::pow(radii[i], alpha);
        py::gil_scoped_release release;
        return disk_sums_forward(op, pointer<double>(sums), threads);
      },
      py::kw_only(), "pair"_a, "hard"_a, "radii"_a, "alpha"_a, "sums"_a, "threads"_a);

  m.def(
      "pairwise_hausdorff_forward",
      [](const HardPair& pair, int mean, double exponent, double eps, uintptr_t points,
         const std::vector<int64_t>& begin, uintptr_t losses, int threads) {
        if (points != 0 && static_cast<int64_t>(begin.size()) != pair.N * (pair.C - pair.first) + 1)
          throw std::length_error("points need one range per group");
        py::gil_scoped_release release;
        pairwise_hausdorff_forward(
            {pair, static_cast<PairwiseMean>(mean), exponent, eps, pointer<double>(points), begin.data()},
            pointer<double>(losses), threads);
      },
      py::kw_only(), "pair"_a, "mean"_a, "exponent"_a, "eps"_a, "points"_a, "begin"_a, "losses"_a, "threads"_a);

  m.def(
      "huge_pages", [](uintptr_t data, size_t bytes) { huge_pages(pointer<void>(data), bytes); }, py::kw_only(),
      "data"_a, "bytes"_a);
  m.def("isa_info", [] {
    py::dict info;
    info["found"] = py::str(isa_found()).attr("split")();
    info["used"] = isa_used();
    return info;
  });
}
