#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "../cpp/threads.h"
#include "../segfuse.h"

namespace py = pybind11;
using namespace segfuse;

namespace {

// (pointer, dtype, strides of N, C and every spatial axis); None is absent
struct Tensor {
  View view;
  std::vector<int64_t> strides;
};

Tensor tensor(const py::handle& h) {
  Tensor t;
  if (h.is_none()) return t;
  const auto parts = h.cast<py::tuple>();
  t.view.data = reinterpret_cast<char*>(parts[0].cast<uintptr_t>());
  t.view.dtype = static_cast<DType>(parts[1].cast<int>());
  t.strides = parts[2].cast<std::vector<int64_t>>();
  return t;
}

// Merges neighbouring spatial axes that every tensor walks as one, and fills shape and strides.
void set_layout(PixelStats& op, const std::vector<int64_t>& spatial, std::initializer_list<std::pair<Tensor*, View*>> all) {
  op.dims = 0;
  op.S = 1;
  for (int64_t side : spatial) op.S *= side;
  int previous = -1;
  for (size_t d = 0; d < spatial.size(); ++d) {
    if (spatial[d] == 1) continue;
    bool merge = previous >= 0;
    for (const auto& [t, view] : all)
      if (t->view.data != nullptr && merge) merge = t->strides[2 + previous] == t->strides[2 + d] * spatial[d];
    if (!merge && op.dims == MAX_DIMS) throw std::length_error("more than 8 spatial axes that cannot be merged");
    if (!merge) op.shape[op.dims++] = 1;
    op.shape[op.dims - 1] *= spatial[d];
    for (const auto& [t, view] : all)
      if (t->view.data != nullptr) t->view.spatial[op.dims - 1] = t->strides[2 + d];
    previous = static_cast<int>(d);
  }
  if (op.dims == 0) op.dims = 1, op.shape[0] = 1;
  for (const auto& [t, view] : all) {
    if (t->view.data == nullptr) continue;
    t->view.batch = t->strides[0];
    t->view.channel = t->strides[1];
    if (op.S == 1) t->view.spatial[0] = 1;
    *view = t->view;
  }
}

PixelStats describe(const std::vector<int64_t>& shape, int activation, bool index_target, int64_t ignore_index,
                    const py::tuple& plan, const py::handle& input, const py::handle& target, const py::handle& weight,
                    const py::handle& mask, const py::handle& output, const py::handle& upstream, uintptr_t coefficient) {
  PixelStats op{};
  op.N = shape[0];
  op.C = shape[1];
  op.activation = static_cast<Activation>(activation);
  op.index_target = index_target;
  op.ignore_index = ignore_index;
  op.rows = plan[0].cast<int>();
  const auto moments = plan[1].cast<py::tuple>();
  for (int m = 0; m < MOMENTS; ++m) op.moment[m] = moments[m].cast<int>();
  const auto terms = plan[2].cast<py::tuple>();
  if (terms.size() > MAX_TERMS) throw std::length_error("more than 8 pixel terms in one pass");
  for (const auto& item : terms) {
    const auto t = item.cast<py::tuple>();
    op.term[op.terms++] = {t[0].cast<int>(), t[1].cast<double>(), t[2].cast<double>(), t[3].cast<int>()};
  }
  op.coefficient = reinterpret_cast<const double*>(coefficient);
  Tensor in = tensor(input), to = tensor(target), w = tensor(weight), m = tensor(mask), out = tensor(output),
         up = tensor(upstream);
  set_layout(op, {shape.begin() + 2, shape.end()},
             {{&in, &op.input}, {&to, &op.target}, {&w, &op.weight}, {&m, &op.mask}, {&out, &op.output}, {&up, &op.upstream}});
  return op;
}

Formula formula(uintptr_t code, int64_t length, uintptr_t constants, uintptr_t outputs, int n_outputs) {
  return {reinterpret_cast<const int32_t*>(code), length, reinterpret_cast<const double*>(constants),
          reinterpret_cast<const int32_t*>(outputs), n_outputs};
}

}  // namespace

PYBIND11_MODULE(_cpp, m) {
  using namespace py::literals;
  forked();  // registers the fork handler

  m.def("pixel_stats_forward",
        [](const std::vector<int64_t>& shape, int activation, bool index_target, int64_t ignore_index, const py::tuple& plan,
           const py::object& input, const py::object& target, const py::object& weight, const py::object& mask,
           uintptr_t sums, const py::object& grad_input, uintptr_t coefficient, int threads) {
          const PixelStats op = describe(shape, activation, index_target, ignore_index, plan, input, target, weight, mask,
                                         grad_input, py::none(), coefficient);
          py::gil_scoped_release release;
          return pixel_stats_forward(op, reinterpret_cast<double*>(sums), threads);
        },
        py::kw_only(), "shape"_a, "activation"_a, "index_target"_a, "ignore_index"_a, "plan"_a, "input"_a, "target"_a,
        "weight"_a, "mask"_a, "sums"_a, "grad_input"_a, "coefficient"_a, "threads"_a);

  m.def("pixel_stats_backward",
        [](const std::vector<int64_t>& shape, int activation, bool index_target, int64_t ignore_index, const py::tuple& plan,
           const py::object& input, const py::object& target, const py::object& weight, const py::object& mask,
           const py::object& grad_input, const py::object& upstream, uintptr_t coefficient, int threads) {
          const PixelStats op = describe(shape, activation, index_target, ignore_index, plan, input, target, weight, mask,
                                         grad_input, upstream, coefficient);
          py::gil_scoped_release release;
          pixel_stats_backward(op, threads);
        },
        py::kw_only(), "shape"_a, "activation"_a, "index_target"_a, "ignore_index"_a, "plan"_a, "input"_a, "target"_a,
        "weight"_a, "mask"_a, "grad_input"_a, "upstream"_a, "coefficient"_a, "threads"_a);

  m.def("pixel_stats_map",
        [](const std::vector<int64_t>& shape, int activation, bool index_target, int64_t ignore_index, const py::tuple& plan,
           const py::object& input, const py::object& target, const py::object& weight, const py::object& mask,
           const py::object& loss_map, uintptr_t coefficient, int threads) {
          const PixelStats op = describe(shape, activation, index_target, ignore_index, plan, input, target, weight, mask,
                                         loss_map, py::none(), coefficient);
          py::gil_scoped_release release;
          return pixel_stats_map(op, threads);
        },
        py::kw_only(), "shape"_a, "activation"_a, "index_target"_a, "ignore_index"_a, "plan"_a, "input"_a, "target"_a,
        "weight"_a, "mask"_a, "loss_map"_a, "coefficient"_a, "threads"_a);

  m.def("formula_forward",
        [](uintptr_t code, int64_t length, uintptr_t constants, uintptr_t outputs, int n_outputs, uintptr_t sums, int64_t N,
           int64_t C, int64_t S, uintptr_t parameters, uintptr_t value, bool value_is_double, uintptr_t terms) {
          formula_forward(formula(code, length, constants, outputs, n_outputs),
                          {reinterpret_cast<const double*>(sums), N, C, S, reinterpret_cast<const double*>(parameters)},
                          reinterpret_cast<void*>(value), value_is_double, reinterpret_cast<double*>(terms));
        },
        py::kw_only(), "code"_a, "length"_a, "constants"_a, "outputs"_a, "n_outputs"_a, "sums"_a, "N"_a, "C"_a, "S"_a,
        "parameters"_a, "value"_a, "value_is_double"_a, "terms"_a);

  m.def("formula_backward",
        [](uintptr_t code, int64_t length, uintptr_t constants, uintptr_t outputs, int n_outputs, uintptr_t sums, int64_t N,
           int64_t C, int64_t S, uintptr_t parameters, uintptr_t grad, bool grad_is_double, uintptr_t coefficient,
           int64_t rows, uintptr_t parameter_grad, int n_parameters) {
          formula_backward(formula(code, length, constants, outputs, n_outputs),
                           {reinterpret_cast<const double*>(sums), N, C, S, reinterpret_cast<const double*>(parameters)},
                           reinterpret_cast<const void*>(grad), grad_is_double, reinterpret_cast<double*>(coefficient), rows,
                           reinterpret_cast<double*>(parameter_grad), n_parameters);
        },
        py::kw_only(), "code"_a, "length"_a, "constants"_a, "outputs"_a, "n_outputs"_a, "sums"_a, "N"_a, "C"_a, "S"_a,
        "parameters"_a, "grad"_a, "grad_is_double"_a, "coefficient"_a, "rows"_a, "parameter_grad"_a, "n_parameters"_a);

  m.def("formula_ratio",
        [](uintptr_t a, uintptr_t b, int64_t length) {
          return formula_ratio(reinterpret_cast<const double*>(a), reinterpret_cast<const double*>(b), length);
        },
        py::kw_only(), "a"_a, "b"_a, "length"_a);

  m.def("huge_pages", [](uintptr_t data, size_t bytes) { huge_pages(reinterpret_cast<void*>(data), bytes); }, py::kw_only(),
        "data"_a, "bytes"_a);
  m.def("isa_info", [] {
    py::dict info;
    info["found"] = py::str(isa_found()).attr("split")();
    info["used"] = isa_used();
    return info;
  });
}
