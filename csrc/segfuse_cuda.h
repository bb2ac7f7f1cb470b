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

// The instructions and constants of the formula lie on the device, as do its other pointers.
struct FormulaCall {
  Formula formula;
  int64_t N, C, S;
  const double* sums;        // [K, N, C]
  const double* parameters;  // or nullptr
  int rows, n_parameters;
  double* workspace;
};
// Bytes of workspace, from instructions that lie on the host.
int64_t formula_workspace(const int32_t* host_code, int64_t length, int64_t N, int64_t C);
cudaError_t formula_forward(const FormulaCall& call, void* value, bool value_is_double, double* terms,
                            cudaStream_t stream);
// coefficient [K, N, C] and parameter_grad from the gradient of the loss.
cudaError_t formula_backward(const FormulaCall& call, const void* grad, bool grad_is_double, double* coefficient,
                             double* parameter_grad, cudaStream_t stream);

}  // namespace cuda
}  // namespace segfuse
