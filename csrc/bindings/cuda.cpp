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

// Everything about a distance transform but its pointers.
struct Distances {
  DistanceTransform op{};
  std::vector<int64_t> leading_shape, leading_strides;
  std::optional<std::vector<int64_t>> classes;
  bool indices;

  Distances(int dtype, const std::vector<int64_t>& leading_shape, const std::vector<int64_t>& leading_strides,
            const std::array<int64_t, 3>& shape, const std::array<int64_t, 3>& strides,
            const std::array<double, 3>& spacing, int mode, const std::optional<std::vector<int64_t>>& classes,
            double threshold, bool squared, bool output_double, bool indices, int axes)
      : leading_shape(leading_shape), leading_strides(leading_strides), classes(classes), indices(indices) {
    if (leading_shape.size() > 64) throw std::length_error("more than 64 leading axes");
    op.dtype = static_cast<DType>(dtype);
    op.leading = static_cast<int>(leading_shape.size());
    for (int d = 0; d < 3; ++d) op.shape[d] = shape[d], op.strides[d] = strides[d], op.spacing[d] = spacing[d];
    op.mode = static_cast<DistanceMode>(mode);
    op.classes = classes ? static_cast<int64_t>(classes->size()) : 1;
    op.threshold = threshold;
    op.squared = squared;
    op.output_double = output_double;
    op.axes = axes;
  }

  DistanceTransform with(uintptr_t input, uintptr_t output, uintptr_t second, uintptr_t indices) const {
    DistanceTransform call = op;
    call.leading_shape = leading_shape.data();
    call.leading_strides = leading_strides.data();
    call.class_number = classes ? classes->data() : nullptr;
    call.input = reinterpret_cast<const char*>(input);
    call.output = reinterpret_cast<void*>(output);
    call.second = reinterpret_cast<void*>(second);
    call.indices = reinterpret_cast<int32_t*>(indices);
    return call;
  }
};

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

  // Addresses of code, constants and outputs on the device; number of instructions, constants and outputs; entries of
  // all arrays
  using DeviceCode = std::tuple<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int, int64_t>;
  const auto formula_call = [](const Pass& layout, const DeviceCode& code, uintptr_t sums, uintptr_t parameters,
                               int n_parameters, uintptr_t workspace) {
    const auto& [instructions, constants, outputs, length, n_constants, n_outputs, total] = code;
    return cuda::FormulaCall{
        {pointer<int32_t>(instructions), length, pointer<double>(constants), pointer<int32_t>(outputs), n_outputs},
        layout.op.N,
        layout.op.C,
        layout.op.S,
        n_constants,
        total,
        pointer<double>(sums),
        pointer<double>(parameters),
        layout.op.rows,
        n_parameters,
        pointer<double>(workspace),
        false};
  };
  // The code with a sixth word for each instruction, and the entries of all arrays.
  m.def(
      "formula_layout",
      [](const std::vector<int32_t>& code, int64_t N, int64_t C) {
        const int64_t length = static_cast<int64_t>(code.size() / 5);
        std::vector<int32_t> laid(length * 6);
        for (int64_t i = 0; i < length; ++i) std::copy_n(code.data() + i * 5, 5, laid.data() + i * 6);
        const int64_t total = cuda::formula_layout(laid.data(), length, N, C);
        return std::make_pair(laid, total);
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

  m.def(
      "local_moments_workspace",
      [](const MomentsPass& layout, int images, bool gradient) {
        return cuda::local_moments_workspace(layout.op, images, gradient);
      },
      py::kw_only(), "layout"_a, "images"_a, "gradient"_a);
  m.def(
      "local_moments_forward",
      [](const Where& where, const MomentsPass& layout, uintptr_t a, uintptr_t b, const std::vector<uintptr_t>& rows,
         uintptr_t workspace) {
        on(where, "local_moments_forward", [&](cudaStream_t stream) {
          return cuda::local_moments_forward(layout.with(a, b, 0, rows), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "a"_a, "b"_a, "rows"_a, "workspace"_a);
  m.def(
      "local_moments_backward",
      [](const Where& where, const MomentsPass& layout, uintptr_t a, uintptr_t b, uintptr_t grad_a,
         const std::vector<uintptr_t>& rows, uintptr_t workspace) {
        on(where, "local_moments_backward", [&](cudaStream_t stream) {
          return cuda::local_moments_backward(layout.with(a, b, grad_a, rows), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "a"_a, "b"_a, "grad_a"_a, "rows"_a, "workspace"_a);

  m.def(
      "ssim_workspace",
      [](const WindowPass& layout, bool gradient) { return cuda::ssim_workspace({layout.op, 0, 0, false}, gradient); },
      py::kw_only(), "layout"_a, "gradient"_a);
  m.def(
      "ssim_forward",
      [](const Where& where, const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers,
         double c1, double c2, bool contrast, uintptr_t grad_input, uintptr_t sums, uintptr_t workspace) {
        on(where, "ssim_forward", [&](cudaStream_t stream) {
          const Ssim op{layout.with(inputs, grad_input, 0, buffers), c1, c2, contrast};
          return cuda::ssim_forward(op, pointer<double>(sums), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "buffers"_a, "c1"_a, "c2"_a, "contrast"_a, "grad_input"_a,
      "sums"_a, "workspace"_a);
  m.def(
      "ssim_backward",
      [](const Where& where, const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers,
         double c1, double c2, bool contrast, uintptr_t coefficient, uintptr_t grad_input, uintptr_t workspace) {
        on(where, "ssim_backward", [&](cudaStream_t stream) {
          const Ssim op{layout.with(inputs, grad_input, coefficient, buffers), c1, c2, contrast};
          return cuda::ssim_backward(op, pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "buffers"_a, "c1"_a, "c2"_a, "contrast"_a, "coefficient"_a,
      "grad_input"_a, "workspace"_a);

  m.def(
      "cmssl_workspace",
      [](const WindowPass& layout, bool gradient, bool detach) {
        Cmssl op{};
        op.loss = layout.op;
        op.detach = detach;
        return cuda::cmssl_workspace(op, gradient);
      },
      py::kw_only(), "layout"_a, "gradient"_a, "detach"_a);
  m.def(
      "cmssl_forward",
      [](const Where& where, const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers,
         double c4, double variance_eps, double beta, int scope, uintptr_t error, uintptr_t threshold, uintptr_t sums,
         uintptr_t workspace) {
        on(where, "cmssl_forward", [&](cudaStream_t stream) {
          const Cmssl op{layout.with(inputs, 0, 0, buffers), c4,    variance_eps,         beta,
                         static_cast<Scope>(scope),          false, pointer<void>(error), pointer<double>(threshold)};
          return cuda::cmssl_forward(op, pointer<double>(sums), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "buffers"_a, "c4"_a, "variance_eps"_a, "beta"_a, "scope"_a,
      "error"_a, "threshold"_a, "sums"_a, "workspace"_a);
  m.def(
      "cmssl_backward",
      [](const Where& where, const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers,
         double c4, double variance_eps, bool detach, uintptr_t threshold, uintptr_t coefficient, uintptr_t grad_input,
         uintptr_t workspace) {
        on(where, "cmssl_backward", [&](cudaStream_t stream) {
          const Cmssl op{layout.with(inputs, grad_input, coefficient, buffers),
                         c4,
                         variance_eps,
                         0,
                         FIXED,
                         detach,
                         nullptr,
                         pointer<double>(threshold)};
          return cuda::cmssl_backward(op, pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "inputs"_a, "buffers"_a, "c4"_a, "variance_eps"_a, "detach"_a,
      "threshold"_a, "coefficient"_a, "grad_input"_a, "workspace"_a);

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

  py::class_<Distances>(m, "Distances", py::module_local())
      .def(py::init<int, const std::vector<int64_t>&, const std::vector<int64_t>&, const std::array<int64_t, 3>&,
                    const std::array<int64_t, 3>&, const std::array<double, 3>&, int,
                    const std::optional<std::vector<int64_t>>&, double, bool, bool, bool, int>(),
           py::kw_only(), "dtype"_a, "leading_shape"_a, "leading_strides"_a, "shape"_a, "strides"_a, "spacing"_a,
           "mode"_a, "classes"_a, "threshold"_a, "squared"_a, "output_double"_a, "indices"_a, "axes"_a);
  m.def(
      "distance_transform_edt_workspace",
      [](const Distances& layout) {
        return cuda::distance_transform_edt_workspace(layout.with(0, 0, 0, layout.indices));
      },
      py::kw_only(), "layout"_a);
  m.def(
      "distance_transform_edt",
      [](const Where& where, const Distances& layout, uintptr_t input, uintptr_t output, uintptr_t second,
         uintptr_t indices, uintptr_t workspace) {
        on(where, "distance_transform_edt", [&](cudaStream_t stream) {
          return cuda::distance_transform_edt(layout.with(input, output, second, indices), pointer<void>(workspace),
                                              stream);
        });
      },
      py::kw_only(), "where"_a, "layout"_a, "input"_a, "output"_a, "second"_a, "indices"_a, "workspace"_a);

  m.def(
      "erosion_workspace",
      [](const HardPair& pair, int steps) { return cuda::erosion_workspace({pair, steps, 0, NONE}); }, py::kw_only(),
      "pair"_a, "steps"_a);
  m.def(
      "erosion_forward",
      [](const Where& where, const HardPair& pair, int steps, double alpha, int norm, uintptr_t sums,
         uintptr_t workspace) {
        on(where, "erosion_forward", [&](cudaStream_t stream) {
          return cuda::erosion_forward({pair, steps, alpha, static_cast<ErosionNorm>(norm)}, pointer<double>(sums),
                                       pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "pair"_a, "steps"_a, "alpha"_a, "norm"_a, "sums"_a, "workspace"_a);

  m.def(
      "disk_sums_workspace",
      [](const HardPair& pair, const std::vector<int>& radii) {
        return cuda::disk_sums_workspace(disk_sums(pair, 0, radii, 0));
      },
      py::kw_only(), "pair"_a, "radii"_a);
  m.def(
      "disk_sums_forward",
      [](const Where& where, const HardPair& pair, uintptr_t hard, const std::vector<int>& radii, double alpha,
         uintptr_t sums, uintptr_t workspace) {
        const DiskSums op = disk_sums(pair, hard, radii, alpha);
        on(where, "disk_sums_forward", [&](cudaStream_t stream) {
          return cuda::disk_sums_forward(op, pointer<double>(sums), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "pair"_a, "hard"_a, "radii"_a, "alpha"_a, "sums"_a, "workspace"_a);

  const auto pairwise = [](const HardPair& pair, int mean, double exponent, double eps, uintptr_t points,
                           uintptr_t begin) {
    return PairwiseHausdorff{pair, static_cast<PairwiseMean>(mean), exponent,
                             eps,  pointer<double>(points),         pointer<int64_t>(begin)};
  };
  m.def(
      "pairwise_hausdorff_workspace",
      [pairwise](const HardPair& pair, bool given, int64_t count) {
        return cuda::pairwise_hausdorff_workspace(pairwise(pair, 0, 0, 0, given, 0), count);
      },
      py::kw_only(), "pair"_a, "given"_a, "count"_a);
  m.def(
      "pairwise_hausdorff_forward",
      [pairwise](const Where& where, const HardPair& pair, int mean, double exponent, double eps, uintptr_t points,
                 uintptr_t begin, int64_t count, uintptr_t losses, uintptr_t workspace) {
        on(where, "pairwise_hausdorff_forward", [&](cudaStream_t stream) {
          return cuda::pairwise_hausdorff_forward(pairwise(pair, mean, exponent, eps, points, begin), count,
                                                  pointer<double>(losses), pointer<void>(workspace), stream);
        });
      },
      py::kw_only(), "where"_a, "pair"_a, "mean"_a, "exponent"_a, "eps"_a, "points"_a, "begin"_a, "count"_a, "losses"_a,
      "workspace"_a);

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
