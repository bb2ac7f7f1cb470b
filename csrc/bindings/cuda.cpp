#include <string>

#include "../segfuse_cuda.h"
#include "convert.h"

using namespace segfuse;

namespace {

// Makes the device of the tensors the current one, and puts the former back.
struct Device {
  int before = 0;
  explicit Device(int device) {
    check(cudaGetDevice(&before), "cudaGetDevice");
    if (device != before) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~Device() { cudaSetDevice(before); }
  Device(const Device&) = delete;

  static void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::string text = std::string(what) + ": " + cudaGetErrorName(error) + " (" +
                       std::to_string(static_cast<int>(error)) + "): " + cudaGetErrorString(error);
    throw std::runtime_error(text + ". `segfuse doctor` says which GPUs this build is for.");
  }
};

// (device number, address of the stream)
using Where = std::pair<int, uintptr_t>;

// f(stream) on the device of the tensors, without the interpreter's lock.
template <typename F>
void on(const Where& where, const char* what, F f) {
  py::gil_scoped_release release;
  const Device device(where.first);
  Device::check(f(reinterpret_cast<cudaStream_t>(where.second)), what);
}

#ifdef SEGFUSE_EMULATION
constexpr bool EMULATED = true;
constexpr const char* ARCHITECTURES = "";
#else
constexpr bool EMULATED = false;
constexpr const char* ARCHITECTURES = SEGFUSE_CUDA_ARCHITECTURES;
#endif

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  using namespace py::literals;
  define_classes(m);
  m.attr("EMULATED") = EMULATED;
  m.attr("ARCHITECTURES") = py::str(ARCHITECTURES).attr("split")(",");

  m.def(
      "pixel_stats_workspace", [](const Pass& layout) { return cuda::pixel_stats_workspace(layout.op); }, py::kw_only(),
      "layout"_a);
  m.def(
      "pixel_stats_forward",
      [](const Where& where, const Pass& layout, const Inputs& inputs, uintptr_t sums, uintptr_t workspace) {
        on(where, "pixel_stats_forward", [&](cudaStream_t stream) {
          return cuda::pixel_stats_forward(layout.with(inputs, 0, 0, 0), pointer<double>(sums),
                                           pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "sums"_a, "workspace"_a);
  m.def(
      "pixel_stats_backward",
      [](const Where& where, const Pass& layout, const Inputs& inputs, uintptr_t grad_input, uintptr_t upstream,
         uintptr_t coefficient) {
        on(where, "pixel_stats_backward", [&](cudaStream_t stream) {
          return cuda::pixel_stats_backward(layout.with(inputs, grad_input, upstream, coefficient), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "grad_input"_a, "upstream"_a, "coefficient"_a);
  m.def(
      "pixel_stats_map",
      [](const Where& where, const Pass& layout, const Inputs& inputs, uintptr_t loss_map, uintptr_t coefficient) {
        on(where, "pixel_stats_map", [&](cudaStream_t stream) {
          return cuda::pixel_stats_map(layout.with(inputs, loss_map, 0, coefficient), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "loss_map"_a, "coefficient"_a);

  // The code, its constants and outputs lie on the device; (code, constants, outputs, length, number of outputs).
  using DeviceCode = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int>;
  const auto formula_call = [](const Pass& layout, const DeviceCode& code, uintptr_t sums, uintptr_t parameters,
                               int n_parameters, uintptr_t workspace) {
    const auto& [instructions, constants, outputs, length, n_outputs] = code;
    return cuda::FormulaCall{
        {pointer<int32_t>(instructions), length, pointer<double>(constants), pointer<int32_t>(outputs), n_outputs},
        layout.op.N,
        layout.op.C,
        layout.op.S,
        pointer<double>(sums),
        pointer<double>(parameters),
        layout.op.rows,
        n_parameters,
        pointer<double>(workspace)};
  };
  m.def(
      "formula_workspace",
      [](const std::vector<int32_t>& code, int64_t N, int64_t C) {
        return cuda::formula_workspace(code.data(), static_cast<int64_t>(code.size() / 5), N, C);
      },
      py::kw_only(), "code"_a, "N"_a, "C"_a);
  m.def(
      "formula_forward",
      [formula_call](const Where& where, const Pass& layout, const DeviceCode& code, uintptr_t sums,
                     uintptr_t parameters, uintptr_t workspace, uintptr_t value, bool value_is_double,
                     uintptr_t terms) {
        on(where, "formula_forward", [&](cudaStream_t stream) {
          return cuda::formula_forward(formula_call(layout, code, sums, parameters, 0, workspace), pointer<void>(value),
                                       value_is_double, pointer<double>(terms), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "code"_a, "sums"_a, "parameters"_a, "workspace"_a, "value"_a,
      "value_is_double"_a, "terms"_a);
  m.def(
      "formula_backward",
      [formula_call](const Where& where, const Pass& layout, const DeviceCode& code, uintptr_t sums,
                     uintptr_t parameters, int n_parameters, uintptr_t workspace, uintptr_t grad, bool grad_is_double,
                     uintptr_t coefficient, uintptr_t parameter_grad) {
        on(where, "formula_backward", [&](cudaStream_t stream) {
          return cuda::formula_backward(formula_call(layout, code, sums, parameters, n_parameters, workspace),
                                        pointer<void>(grad), grad_is_double, pointer<double>(coefficient),
                                        pointer<double>(parameter_grad), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "code"_a, "sums"_a, "parameters"_a, "n_parameters"_a, "workspace"_a,
      "grad"_a, "grad_is_double"_a, "coefficient"_a, "parameter_grad"_a);

  const auto top_k = [](int64_t rows, int64_t length, bool is_double, uintptr_t values, uintptr_t valid, double percent,
                        uintptr_t chosen) {
    return TopK{rows,
                length,
                is_double ? F64 : F32,
                pointer<void>(values),
                pointer<uint8_t>(valid),
                percent,
                pointer<uint8_t>(chosen)};
  };
  m.def(
      "top_k_workspace",
      [top_k](int64_t rows, int64_t length) { return cuda::top_k_workspace(top_k(rows, length, false, 0, 0, 0, 0)); },
      py::kw_only(), "rows"_a, "length"_a);
  m.def(
      "top_k_forward",
      [top_k](const Where& where, int64_t rows, int64_t length, bool is_double, uintptr_t values, uintptr_t valid,
              double percent, uintptr_t chosen, uintptr_t sum, uintptr_t count, uintptr_t workspace) {
        on(where, "top_k_forward", [&](cudaStream_t stream) {
          return cuda::top_k_forward(top_k(rows, length, is_double, values, valid, percent, chosen),
                                     pointer<double>(sum), pointer<double>(count), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "rows"_a, "length"_a, "is_double"_a, "values"_a, "valid"_a, "percent"_a, "chosen"_a,
      "sum"_a, "count"_a, "workspace"_a);

  m.def(
      "lovasz_extension_workspace",
      [](const Pass& layout, bool per_image, bool keep_slopes, int64_t classes) {
        return cuda::lovasz_extension_workspace(
            {layout.op, false, per_image, false, nullptr, nullptr, keep_slopes, 0, classes});
      },
      py::kw_only(), "layout"_a, "per_image"_a, "keep_slopes"_a, "classes"_a);
  m.def(
      "lovasz_extension_forward",
      [](const Where& where, const Pass& layout, bool hinge, bool per_image, bool present, const py::bytes& wanted,
         bool keep_slopes, int64_t classes, const Inputs& inputs, uintptr_t slope, uintptr_t value, uintptr_t positives,
         uintptr_t workspace) {
        const std::string which = wanted;
        on(where, "lovasz_extension_forward", [&](cudaStream_t stream) {
          const LovaszExtension op{layout.with(inputs, 0, 0, 0),
                                   hinge,
                                   per_image,
                                   present,
                                   reinterpret_cast<const uint8_t*>(which.data()),
                                   pointer<void>(slope),
                                   keep_slopes,
                                   0,
                                   classes};
          return cuda::lovasz_extension_forward(op, pointer<double>(value), pointer<double>(positives),
                                                pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "hinge"_a, "per_image"_a, "present"_a, "wanted"_a, "keep_slopes"_a,
      "classes"_a, "inputs"_a, "slope"_a, "value"_a, "positives"_a, "workspace"_a);
  m.def(
      "lovasz_extension_backward",
      [](const Where& where, const Pass& layout, bool hinge, bool per_image, const Inputs& inputs, uintptr_t slope,
         uintptr_t grad_input, uintptr_t coefficient) {
        on(where, "lovasz_extension_backward", [&](cudaStream_t stream) {
          const LovaszExtension op{layout.with(inputs, grad_input, 0, 0),
                                   hinge,
                                   per_image,
                                   false,
                                   nullptr,
                                   pointer<void>(slope),
                                   true,
                                   0,
                                   layout.op.C};
          return cuda::lovasz_extension_backward(op, pointer<double>(coefficient), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "hinge"_a, "per_image"_a, "inputs"_a, "slope"_a, "grad_input"_a,
      "coefficient"_a);
}
