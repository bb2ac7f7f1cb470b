// What the bindings of every extension share: layouts of tensors, and the classes that hold all of a call but its
// pointers.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "layout.h"

namespace py = pybind11;

namespace segfuse {
namespace {

Layout layout(const py::handle& h) {
  if (h.is_none()) return {};
  const auto parts = h.cast<py::tuple>();
  return {true, static_cast<DType>(parts[0].cast<int>()), parts[1].cast<std::vector<int64_t>>()};
}

// Addresses of input, target, weight, mask and distance; 0: absent
using Inputs = std::array<uintptr_t, 5>;

// Everything about a call but its pointers: the same whenever the same loss meets tensors of the same kind.
struct Pass {
  PixelStats op{};

  Pass(const std::vector<int>& moments, const std::vector<std::tuple<int, double, double, int, bool>>& terms, int rows,
       const std::vector<int64_t>& shape, int activation, bool index_target, int64_t ignore_index,
       const py::object& input, const py::object& target, const py::object& weight, const py::object& mask,
       const py::object& distance, const py::object& output, const py::object& upstream) {
    if (moments.size() != MOMENTS) throw std::length_error("a plan names the row of every moment");
    if (terms.size() > MAX_TERMS) throw std::length_error("more than 16 pixel terms in one pass");
    op.rows = rows;
    for (int m = 0; m < MOMENTS; ++m) op.moment[m] = moments[m];
    for (const auto& [kind, a, b, row, mapped] : terms) op.term[op.terms++] = {kind, a, b, row, mapped};
    op.N = shape[0];
    op.C = shape[1];
    op.groups = op.N;
    op.activation = static_cast<Activation>(activation);
    op.index_target = index_target;
    op.ignore_index = ignore_index;
    set_layout(op, {shape.begin() + 2, shape.end()},
               {{layout(input), &op.input},
                {layout(target), &op.target},
                {layout(weight), &op.weight},
                {layout(mask), &op.mask},
                {layout(distance), &op.distance},
                {layout(output), &op.output},
                {layout(upstream), &op.upstream}});
  }

  PixelStats with(const Inputs& inputs, uintptr_t output, uintptr_t upstream, uintptr_t coefficient) const {
    PixelStats call = op;
    View* views[] = {&call.input, &call.target, &call.weight, &call.mask, &call.distance};
    for (size_t i = 0; i < inputs.size(); ++i) views[i]->data = reinterpret_cast<char*>(inputs[i]);
    call.output.data = reinterpret_cast<char*>(output);
    call.upstream.data = reinterpret_cast<char*>(upstream);
    call.coefficient = reinterpret_cast<const double*>(coefficient);
    return call;
  }
};

View at(View v, uintptr_t data) {
  v.data = reinterpret_cast<char*>(data);
  return v;
}

struct MomentsPass {
  LocalMoments op{};
  LocalMoments with(uintptr_t a, uintptr_t b, uintptr_t output, const std::vector<uintptr_t>& rows) const {
    if (rows.size() != 5) throw std::length_error("five rows: two means, two variances and a covariance");
    LocalMoments call = op;
    call.a = at(op.a, a);
    call.b = at(op.b, b);
    call.output = at(op.output, output);
    for (int i = 0; i < 5; ++i) call.row[i] = reinterpret_cast<void*>(rows[i]);
    return call;
  }
};

struct WindowPass {
  WindowLoss op{};
  WindowLoss with(const Inputs& inputs, uintptr_t output, uintptr_t coefficient,
                  const std::vector<uintptr_t>& buffers) const {
    if (buffers.size() != 4) throw std::length_error("four buffers: p, -log p and their gradients");
    WindowLoss call = op;
    call.input = at(op.input, inputs[0]);
    call.target = at(op.target, inputs[1]);
    call.weight = at(op.weight, inputs[2]);
    call.mask = at(op.mask, inputs[3]);
    call.output = at(op.output, output);
    call.coefficient = reinterpret_cast<const double*>(coefficient);
    call.probability = reinterpret_cast<void*>(buffers[0]);
    call.entropy = reinterpret_cast<void*>(buffers[1]);
    call.grad_probability = reinterpret_cast<void*>(buffers[2]);
    call.grad_entropy = reinterpret_cast<void*>(buffers[3]);
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

void define_classes(py::module_& m) {
  using namespace py::literals;
  py::class_<Pass>(m, "Pass", py::module_local())
      .def(py::init<const std::vector<int>&, const std::vector<std::tuple<int, double, double, int, bool>>&, int,
                    const std::vector<int64_t>&, int, bool, int64_t, const py::object&, const py::object&,
                    const py::object&, const py::object&, const py::object&, const py::object&, const py::object&>(),
           py::kw_only(), "moments"_a, "terms"_a, "rows"_a, "shape"_a, "activation"_a, "index_target"_a,
           "ignore_index"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "distance"_a, "output"_a, "upstream"_a);
  py::class_<Code>(m, "Code", py::module_local())
      .def(py::init([](std::vector<int32_t> code, std::vector<double> constants, std::vector<int32_t> outputs) {
             return Code{std::move(code), std::move(outputs), std::move(constants)};
           }),
           py::kw_only(), "code"_a, "constants"_a, "outputs"_a);
  py::class_<HardPair>(m, "HardPair", py::module_local())
      .def(py::init(&hard_pair), py::kw_only(), "shape"_a, "first"_a, "dtype"_a, "index"_a, "plain"_a,
           "weight_per_class"_a, "p"_a, "code"_a, "weight"_a, "grad"_a);
  py::class_<MomentsPass>(m, "MomentsPass", py::module_local())
      .def(py::init([](const std::vector<int64_t>& shape, const std::vector<std::vector<double>>& weights, bool valid,
                       const py::object& a, const py::object& b, const py::object& output) {
             MomentsPass pass;
             pass.op.windows = windows(shape, weights, valid);
             pass.op.a = window_view(layout(a));
             pass.op.b = window_view(layout(b));
             pass.op.output = window_view(layout(output));
             return pass;
           }),
           py::kw_only(), "shape"_a, "weights"_a, "valid"_a, "a"_a, "b"_a, "output"_a);
  py::class_<WindowPass>(m, "WindowPass", py::module_local())
      .def(py::init([](const std::vector<int64_t>& shape, const std::vector<std::vector<double>>& weights, bool valid,
                       int activation, bool exclusive, bool index_target, int64_t ignore_index, int64_t first_class,
                       const py::object& input, const py::object& target, const py::object& weight,
                       const py::object& mask, const py::object& output) {
             WindowPass pass;
             WindowLoss& op = pass.op;
             op.windows = windows(shape, weights, valid);
             op.activation = static_cast<Activation>(activation);
             op.exclusive = exclusive;
             op.index_target = index_target;
             op.ignore_index = ignore_index;
             op.first_class = first_class;
             op.input = window_view(layout(input));
             op.target = window_view(layout(target));
             op.weight = window_view(layout(weight));
             op.mask = window_view(layout(mask));
             op.output = window_view(layout(output));
             return pass;
           }),
           py::kw_only(), "shape"_a, "weights"_a, "valid"_a, "activation"_a, "exclusive"_a, "index_target"_a,
           "ignore_index"_a, "first_class"_a, "input"_a, "target"_a, "weight"_a, "mask"_a, "output"_a);
}

}  // namespace
}  // namespace segfuse
