// The native interface on a GPU: the structures of segfuse.h with device pointers, a stream, and workspaces that the
// caller allocates. Nothing here allocates, waits for the device or reads from it. Every function returns the error of
// its launches. Targets and weights out of range are counted on the device and make every result NaN.
#pragma once
#include "segfuse.h"
#ifdef SEGFUSE_EMULATION
#include "../tests/cuda/emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace segfuse {
namespace cuda {

// Bytes of workspace for the forward pass; -1 where a block has too little shared memory for that many classes.
int64_t pixel_stats_workspace(const PixelStats& op);
cudaError_t pixel_stats_forward(const PixelStats& op, double* sums, void* workspace, cudaStream_t stream);
cudaError_t pixel_stats_backward(const PixelStats& op, cudaStream_t stream);
cudaError_t pixel_stats_map(const PixelStats& op, cudaStream_t stream);

int64_t top_k_workspace(const TopK& op);
cudaError_t top_k_forward(const TopK& op, double* sum, double* count, void* workspace, cudaStream_t stream);

// op.slope holds op.classes from op.first = 0 on: all of them, or room for some of them at a time. op.wanted lies on
// the host. Where a target is out of range the loss, and with slopes the gradient, of its problem is NaN.
int64_t lovasz_extension_workspace(const LovaszExtension& op);
cudaError_t lovasz_extension_forward(const LovaszExtension& op, double* value, double* positives, void* workspace,
                                     cudaStream_t stream);
cudaError_t lovasz_extension_backward(const LovaszExtension& op, const double* coefficient, cudaStream_t stream);

// The instructions [length, 6], whose last word says where an array lies, and the constants are on the device, as are
// the other pointers.
struct FormulaCall {
  Formula formula;
  int64_t N, C, S;
  int64_t n_constants, total;  // total: entries of all arrays
  const double* sums;          // [K, N, C]
  const double* parameters;    // or nullptr
  int rows, n_parameters;
  double* workspace;   // 2 total doubles
  bool shared_arrays;  // set by the launch: the arrays lie in shared memory
};
// Fills in the last word of every instruction, on the host, and returns `total`.
int64_t formula_layout(int32_t* code, int64_t length, int64_t N, int64_t C);
cudaError_t formula_forward(FormulaCall call, void* value, bool value_is_double, double* terms, cudaStream_t stream);
// coefficient [K, N, C] and parameter_grad from the gradient of the loss.
cudaError_t formula_backward(FormulaCall call, const void* grad, bool grad_is_double, double* coefficient,
                             double* parameter_grad, cudaStream_t stream);

// Bytes of workspace with one image or two, of the forward pass or of a gradient.
int64_t local_moments_workspace(const LocalMoments& op, int images, bool gradient);
cudaError_t local_moments_forward(const LocalMoments& op, void* workspace, cudaStream_t stream);
cudaError_t local_moments_backward(const LocalMoments& op, void* workspace, cudaStream_t stream);

// Bytes of workspace, with or without a gradient.
int64_t ssim_workspace(const Ssim& op, bool gradient);
cudaError_t ssim_forward(const Ssim& op, double* sums, void* workspace, cudaStream_t stream);
cudaError_t ssim_backward(const Ssim& op, void* workspace, cudaStream_t stream);

// Bytes of workspace, of the forward pass or of a gradient.
int64_t cmssl_workspace(const Cmssl& op, bool gradient);
cudaError_t cmssl_forward(const Cmssl& op, double* sums, void* workspace, cudaStream_t stream);
cudaError_t cmssl_backward(const Cmssl& op, void* workspace, cudaStream_t stream);

// All pointers but class_number, leading_shape and leading_strides lie on the device. The workspace does not depend on
// what they point to, only on which are there.
int64_t distance_transform_edt_workspace(const DistanceTransform& op);
cudaError_t distance_transform_edt(const DistanceTransform& op, void* workspace, cudaStream_t stream);

// The pairs lie on the device. Workspaces depend on shapes, settings and on which pointers are there. The gradient of
// the classes before `first` is not written.
int64_t erosion_workspace(const Erosion& op);
cudaError_t erosion_forward(const Erosion& op, double* sums, void* workspace, cudaStream_t stream);
int64_t disk_sums_workspace(const DiskSums& op);
cudaError_t disk_sums_forward(const DiskSums& op, double* sums, void* workspace, cudaStream_t stream);
// op.points and op.begin lie on the device; `points`: how many there are of all groups, where they are given.
int64_t pairwise_hausdorff_workspace(const PairwiseHausdorff& op, int64_t points);
cudaError_t pairwise_hausdorff_forward(const PairwiseHausdorff& op, int64_t points, double* losses, void* workspace,
                                       cudaStream_t stream);

}  // namespace cuda
}  // namespace segfuse
