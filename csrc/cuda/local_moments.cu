// local_moments on a GPU: see windows.cuh for the march.
//
// Memory: forward reads the images and writes two or five values of a window. Backward reads the images and the
//         gradients, writes and reads two or three maps of the centres, reads the images again and writes the gradient.
#include "windows.cuh"

namespace segfuse {
namespace {

template <typename T>
__device__ __forceinline__ T pixel_of(const LocalMoments& op, int image, int64_t n, int64_t c, const Place& at) {
  const View& v = image == 0 ? op.a : op.b;
  return read<T>(v.data, v.dtype, offset_of(v, n, c, at));
}

// Where the result of a window lies in the rows.
__device__ __forceinline__ int64_t result_of(const Windows& w, int64_t group, const Place& at) {
  int64_t low[3], shape[3];
#pragma unroll
  for (int d = 0; d < 3; ++d) low[d] = w.valid ? w.radius[d] : 0, shape[d] = w.shape[d] - 2 * low[d];
  return ((group * shape[0] + at.z - low[0]) * shape[1] + at.y - low[1]) * shape[2] + at.x - low[2];
}

template <typename Float>
struct MomentsPolicy {
  using T = Float;
  LocalMoments op;
  __device__ const Windows& windows() const { return op.windows; }
  __device__ __forceinline__ Group state(int64_t number) const {
    return {number, number / op.windows.C, number % op.windows.C};
  }
  __device__ void finish(const Group&, int64_t) const {}
};

template <typename T, int IMAGES>
struct Moments : MomentsPolicy<T> {
  using Filter = Gather<T, IMAGES, true, IMAGES == 2>;

  __device__ __forceinline__ void load(const Group& g, const Place& at, T* v) const {
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) v[i] = pixel_of<T>(this->op, i, g.n, g.c, at);
  }
  __device__ __forceinline__ void centre(const Group& g, const Place& at, const T* moments) const {
    if (!has_window(this->op.windows, at)) return;
    const int64_t to = result_of(this->op.windows, g.number, at);
    auto store = [&](int row, T x) { static_cast<T*>(this->op.row[row])[to] = x; };
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) store(2 * i, moments[i]), store(2 * i + 1, moments[Filter::VAR + i]);
    if constexpr (IMAGES == 2) store(4, moments[Filter::COV]);
  }
};

// What the gradients of the rows make of every centre.
template <typename T, int IMAGES>
struct MomentsCentres : MomentsPolicy<T> {
  using Filter = Gather<T, IMAGES, false, false>;
  Maps<T> maps;

  __device__ __forceinline__ void load(const Group& g, const Place& at, T* v) const {
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) v[i] = pixel_of<T>(this->op, i, g.n, g.c, at);
  }
  __device__ __forceinline__ void centre(const Group& g, const Place& at, const T* mean) const {
    const Windows& w = this->op.windows;
    const int64_t i = pixel_number(w, at);
    T h = T(0), by[IMAGES] = {};
    if (has_window(w, at)) {
      const int64_t from = result_of(w, g.number, at);
      auto gradient = [&](int row) {
        const T* grad = static_cast<const T*>(this->op.row[row]);
        return grad == nullptr ? T(0) : grad[from];
      };
      by[0] = T(2) * gradient(1);
      if constexpr (IMAGES == 2) by[1] = gradient(4);
      h = gradient(0);
#pragma unroll
      for (int k = 0; k < IMAGES; ++k) h += by[k] * (pixel_of<T>(this->op, k, g.n, g.c, at) - mean[k]);
    }
    *maps.at(0, g.number, i) = h;
#pragma unroll
    for (int k = 0; k < IMAGES; ++k) *maps.at(1 + k, g.number, i) = by[k];
  }
};

template <typename T, int IMAGES>
struct MomentsGradient : MomentsPolicy<T> {
  using Filter = Scatter<T, IMAGES>;
  Maps<T> maps;

  __device__ __forceinline__ void load(const Group& g, const Place& at, T* v) const {
    const int64_t i = pixel_number(this->op.windows, at);
#pragma unroll
    for (int k = 0; k < Filter::MAPS; ++k) v[k] = *maps.at(k, g.number, i);
#pragma unroll
    for (int k = 0; k < IMAGES; ++k) v[Filter::MAPS + k] = pixel_of<T>(this->op, k, g.n, g.c, at);
  }
  __device__ __forceinline__ void centre(const Group& g, const Place& at, const T* gradient) const {
    const View& v = this->op.output;
    const int64_t to = offset_of(v, g.n, g.c, at);
    if constexpr (sizeof(T) == 8) {
      narrow(gradient[0], reinterpret_cast<double*>(v.data)[to]);
    } else if (v.dtype == F16) {
      narrow(gradient[0], reinterpret_cast<half*>(v.data)[to]);
    } else if (v.dtype == BF16) {
      narrow(gradient[0], reinterpret_cast<bfloat16*>(v.data)[to]);
    } else {
      narrow(gradient[0], reinterpret_cast<float*>(v.data)[to]);
    }
  }
};

int64_t images_of(const LocalMoments& op) { return op.b.data == nullptr ? 1 : 2; }
int64_t groups_of(const LocalMoments& op) { return op.windows.N * op.windows.C; }

template <typename T, int IMAGES>
cudaError_t forward(const LocalMoments& op, cudaStream_t stream) {
  using Policy = Moments<T, IMAGES>;
  return run_march(Policy{{op}}, tiles_of<Policy>(op.windows, groups_of(op)), 0, groups_of(op), stream);
}

template <typename T, int IMAGES>
cudaError_t backward(const LocalMoments& op, T* room, cudaStream_t stream) {
  const int64_t groups = groups_of(op), most = groups_at_once(op.windows, groups);
  const Tiles in = tiles_of<MomentsCentres<T, IMAGES>>(op.windows, most);
  const Tiles out = tiles_of<MomentsGradient<T, IMAGES>>(op.windows, most);
  for (int64_t first = 0; first < groups; first += most) {
    const int64_t count = min_(most, groups - first);
    const Maps<T> maps{room, first, most, pixels_of(op.windows)};
    SEGFUSE_TRY(run_march(MomentsCentres<T, IMAGES>{{op}, maps}, in, first, count, stream));
    SEGFUSE_TRY(run_march(MomentsGradient<T, IMAGES>{{op}, maps}, out, first, count, stream));
  }
  return cudaSuccess;
}

}  // namespace

namespace cuda {

int64_t local_moments_workspace(const LocalMoments& op, int images) {
  const int64_t value = op.a.dtype == F64 ? sizeof(double) : sizeof(float);
  return groups_at_once(op.windows, groups_of(op)) * pixels_of(op.windows) * (images + 1) * value;
}

cudaError_t local_moments_forward(const LocalMoments& op, cudaStream_t stream) {
  if (op.a.dtype == F64) return images_of(op) == 2 ? forward<double, 2>(op, stream) : forward<double, 1>(op, stream);
  return images_of(op) == 2 ? forward<float, 2>(op, stream) : forward<float, 1>(op, stream);
}

cudaError_t local_moments_backward(const LocalMoments& op, void* workspace, cudaStream_t stream) {
  if (op.a.dtype == F64) {
    double* room = static_cast<double*>(workspace);
    return images_of(op) == 2 ? backward<double, 2>(op, room, stream) : backward<double, 1>(op, room, stream);
  }
  float* room = static_cast<float*>(workspace);
  return images_of(op) == 2 ? backward<float, 2>(op, room, stream) : backward<float, 1>(op, room, stream);
}

}  // namespace cuda
}  // namespace segfuse
