#include "../cpp/threads.h"
#include "convert.h"

using namespace segfuse;

PYBIND11_MODULE(_cpp, m) {
  using namespace py::literals;
  forked();  // registers the fork handler
  define_classes(m);

  m.def(
      "pixel_stats_forward",
      [](const Pass& layout, const Inputs& inputs, uintptr_t sums, uintptr_t segments, int64_t groups, int threads) {
        py::gil_scoped_release release;
        PixelStats op = layout.with(inputs, 0, 0, 0);
        if (segments != 0) op.segments = pointer<const int32_t>(segments), op.groups = groups;
        return pixel_stats_forward(op, pointer<double>(sums), threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "sums"_a, "segments"_a, "groups"_a, "threads"_a);

  m.def(
      "pixel_stats_backward",
      [](const Pass& layout, const Inputs& inputs, uintptr_t grad_input, uintptr_t upstream, uintptr_t coefficient,
         uintptr_t segments, int64_t groups, int threads) {
        py::gil_scoped_release release;
        PixelStats op = layout.with(inputs, grad_input, upstream, coefficient);
        if (segments != 0) op.segments = pointer<const int32_t>(segments), op.groups = groups;
        pixel_stats_backward(op, threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "grad_input"_a, "upstream"_a, "coefficient"_a, "segments"_a, "groups"_a,
      "threads"_a);

  m.def(
      "lovasz_extension_forward",
      [](const Pass& layout, bool hinge, bool per_image, bool present, const py::bytes& wanted, bool keep_slopes,
         int64_t classes, uintptr_t input, uintptr_t target, uintptr_t mask, uintptr_t slope, uintptr_t value,
         uintptr_t positives, int threads) {
        const std::string which = wanted;
        py::gil_scoped_release release;
        const LovaszExtension op{layout.with({input, target, 0, mask, 0}, 0, 0, 0),
                                 hinge,
                                 per_image,
                                 present,
                                 reinterpret_cast<const uint8_t*>(which.data()),
                                 pointer<void>(slope),
                                 keep_slopes,
                                 0,
                                 classes};
        return lovasz_extension_forward(op, pointer<double>(value), pointer<double>(positives), threads);
      },
      py::kw_only(), "layout"_a, "hinge"_a, "per_image"_a, "present"_a, "wanted"_a, "keep_slopes"_a, "classes"_a,
      "input"_a, "target"_a, "mask"_a, "slope"_a, "value"_a, "positives"_a, "threads"_a);

  m.def(
      "lovasz_extension_backward",
      [](const Pass& layout, bool hinge, bool per_image, uintptr_t input, uintptr_t slope, uintptr_t grad_input,
         uintptr_t coefficient, int threads) {
        py::gil_scoped_release release;
        const LovaszExtension op{layout.with({input, 0, 0, 0, 0}, grad_input, 0, 0),
                                 hinge,
                                 per_image,
                                 false,
                                 nullptr,
                                 pointer<void>(slope),
                                 true,
                                 0,
                                 layout.op.C};
        lovasz_extension_backward(op, pointer<double>(coefficient), threads);
      },
      py::kw_only(), "layout"_a, "hinge"_a, "per_image"_a, "input"_a, "slope"_a, "grad_input"_a, "coefficient"_a,
      "threads"_a);

  m.def(
      "top_k_forward",
      [](int64_t rows, int64_t length, bool is_double, uintptr_t values, uintptr_t valid, double percent,
         uintptr_t chosen, uintptr_t sum, uintptr_t count, int threads) {
        py::gil_scoped_release release;
        const TopK op{rows,
                      length,
                      is_double ? F64 : F32,
                      pointer<void>(values),
                      pointer<uint8_t>(valid),
                      percent,
                      pointer<uint8_t>(chosen)};
        top_k_forward(op, pointer<double>(sum), pointer<double>(count), threads);
      },
      py::kw_only(), "rows"_a, "length"_a, "is_double"_a, "values"_a, "valid"_a, "percent"_a, "chosen"_a, "sum"_a,
      "count"_a, "threads"_a);

  m.def(
      "pixel_stats_map",
      [](const Pass& layout, const Inputs& inputs, uintptr_t loss_map, uintptr_t coefficient, int threads) {
        py::gil_scoped_release release;
        return pixel_stats_map(layout.with(inputs, loss_map, 0, coefficient), threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "loss_map"_a, "coefficient"_a, "threads"_a);

  m.def(
      "formula_forward",
      [](const Pass& layout, const Code& code, const Inputs& inputs, uintptr_t sums, uintptr_t parameters,
         uintptr_t grad_input, bool count_first, uintptr_t value, bool value_is_double, uintptr_t terms, int threads) {
        py::gil_scoped_release release;
        const Evaluation e{layout.with(inputs, grad_input, 0, 0),
                           code.formula(),
                           pointer<double>(sums),
                           pointer<double>(parameters),
                           0,
                           grad_input != 0,
                           false,
                           count_first};
        return formula_forward(e, pointer<void>(value), value_is_double, pointer<double>(terms), threads);
      },
      py::kw_only(), "layout"_a, "code"_a, "inputs"_a, "sums"_a, "parameters"_a, "grad_input"_a, "count_first"_a,
      "value"_a, "value_is_double"_a, "terms"_a, "threads"_a);

  m.def(
      "formula_backward",
      [](const Pass& layout, const Code& code, const Inputs& inputs, uintptr_t sums, uintptr_t parameters,
         uintptr_t grad_input, bool ahead, bool written, uintptr_t grad, bool grad_is_double, uintptr_t parameter_grad,
         int n_parameters, int threads) {
        py::gil_scoped_release release;
        const Evaluation e{layout.with(inputs, grad_input, 0, 0),
                           code.formula(),
                           pointer<double>(sums),
                           pointer<double>(parameters),
                           n_parameters,
                           ahead,
                           written,
                           false};
        return formula_backward(e, pointer<void>(grad), grad_is_double, pointer<double>(parameter_grad), threads);
      },
      py::kw_only(), "layout"_a, "code"_a, "inputs"_a, "sums"_a, "parameters"_a, "grad_input"_a, "ahead"_a, "written"_a,
      "grad"_a, "grad_is_double"_a, "parameter_grad"_a, "n_parameters"_a, "threads"_a);

  m.def(
      "distance_transform_edt",
      [](uintptr_t input, int dtype, const std::vector<int64_t>& leading_shape,
         const std::vector<int64_t>& leading_strides, const std::array<int64_t, 3>& shape,
         const std::array<int64_t, 3>& strides, const std::array<double, 3>& spacing, int mode,
         const std::optional<std::vector<int64_t>>& classes, double threshold, bool squared, uintptr_t output,
         bool output_double, uintptr_t second, uintptr_t indices, int axes, int threads) {
        DistanceTransform op{};
        op.input = pointer<const char>(input);
        op.dtype = static_cast<DType>(dtype);
        op.leading = static_cast<int>(leading_shape.size());
        op.leading_shape = leading_shape.data();
        op.leading_strides = leading_strides.data();
        for (int d = 0; d < 3; ++d) op.shape[d] = shape[d], op.strides[d] = strides[d], op.spacing[d] = spacing[d];
        op.mode = static_cast<DistanceMode>(mode);
        op.classes = classes ? static_cast<int64_t>(classes->size()) : 1;
        op.class_number = classes ? classes->data() : nullptr;
        op.threshold = threshold;
        op.squared = squared;
        op.output_double = output_double;
        op.output = pointer<void>(output);
        op.second = pointer<void>(second);
        op.indices = pointer<int32_t>(indices);
        op.axes = axes;
        py::gil_scoped_release release;
        return distance_transform_edt(op, threads);
      },
      py::kw_only(), "input"_a, "dtype"_a, "leading_shape"_a, "leading_strides"_a, "shape"_a, "strides"_a, "spacing"_a,
      "mode"_a, "classes"_a, "threshold"_a, "squared"_a, "output"_a, "output_double"_a, "second"_a, "indices"_a,
      "axes"_a, "threads"_a);

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
        const DiskSums op = disk_sums(pair, hard, radii, alpha);
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
      "local_moments_forward",
      [](const MomentsPass& layout, uintptr_t a, uintptr_t b, const std::vector<uintptr_t>& rows, int threads) {
        py::gil_scoped_release release;
        local_moments_forward(layout.with(a, b, 0, rows), threads);
      },
      py::kw_only(), "layout"_a, "a"_a, "b"_a, "rows"_a, "threads"_a);
  m.def(
      "local_moments_backward",
      [](const MomentsPass& layout, uintptr_t a, uintptr_t b, uintptr_t grad_a, const std::vector<uintptr_t>& rows,
         int threads) {
        py::gil_scoped_release release;
        local_moments_backward(layout.with(a, b, grad_a, rows), threads);
      },
      py::kw_only(), "layout"_a, "a"_a, "b"_a, "grad_a"_a, "rows"_a, "threads"_a);

  m.def(
      "cmssl_forward",
      [](const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers, double c4,
         double variance_eps, double beta, int scope, uintptr_t error, uintptr_t threshold, uintptr_t sums,
         int threads) {
        py::gil_scoped_release release;
        const Cmssl op{layout.with(inputs, 0, 0, buffers), c4,    variance_eps,         beta,
                       static_cast<Scope>(scope),          false, pointer<void>(error), pointer<double>(threshold)};
        return cmssl_forward(op, pointer<double>(sums), threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "buffers"_a, "c4"_a, "variance_eps"_a, "beta"_a, "scope"_a, "error"_a,
      "threshold"_a, "sums"_a, "threads"_a);
  m.def(
      "cmssl_backward",
      [](const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers, double c4,
         double variance_eps, bool detach, uintptr_t threshold, uintptr_t coefficient, uintptr_t grad_input,
         int threads) {
        py::gil_scoped_release release;
        const Cmssl op{layout.with(inputs, grad_input, coefficient, buffers),
                       c4,
                       variance_eps,
                       0,
                       FIXED,
                       detach,
                       nullptr,
                       pointer<double>(threshold)};
        cmssl_backward(op, threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "buffers"_a, "c4"_a, "variance_eps"_a, "detach"_a, "threshold"_a,
      "coefficient"_a, "grad_input"_a, "threads"_a);

  m.def(
      "ssim_forward",
      [](const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers, double c1, double c2,
         bool contrast, uintptr_t grad_input, uintptr_t sums, int threads) {
        py::gil_scoped_release release;
        const Ssim op{layout.with(inputs, grad_input, 0, buffers), c1, c2, contrast};
        return ssim_forward(op, pointer<double>(sums), threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "buffers"_a, "c1"_a, "c2"_a, "contrast"_a, "grad_input"_a, "sums"_a,
      "threads"_a);
  m.def(
      "ssim_backward",
      [](const WindowPass& layout, const Inputs& inputs, const std::vector<uintptr_t>& buffers, double c1, double c2,
         bool contrast, uintptr_t coefficient, uintptr_t grad_input, int threads) {
        py::gil_scoped_release release;
        const Ssim op{layout.with(inputs, grad_input, coefficient, buffers), c1, c2, contrast};
        ssim_backward(op, threads);
      },
      py::kw_only(), "layout"_a, "inputs"_a, "buffers"_a, "c1"_a, "c2"_a, "contrast"_a, "coefficient"_a, "grad_input"_a,
      "threads"_a);

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
