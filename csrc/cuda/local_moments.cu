// local_moments on a GPU: see windows.cuh for the march.
//
// Floor:  forward 4 B of each image and 4 B of each result for a pixel (8 for float64); backward 4 B of each image,
// each
//         gradient given and the one made.
// Memory: forward reads the images and writes two or five values of a window. Backward reads the images and the
//         gradients, writes and reads two or three maps of the centres, reads the images again and writes the gradient.
//         Images that are not dense or not in the type of computation are copied first, some groups at a time.
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

bool is_dense(const Windows& w, const View& v, DType computed) {
  const int64_t lengths[5] = {w.N, w.C, w.shape[0], w.shape[1], w.shape[2]};
  const int64_t strides[5] = {v.batch, v.channel, v.spatial[0], v.spatial[1], v.spatial[2]};
  int64_t dense = 1;
  for (int d = 4; d >= 0; --d) {
    if (lengths[d] != 1 && strides[d] != dense) return false;
    dense *= lengths[d];
  }
  return v.dtype == computed;
}

// Map `image` of some groups. Grid: groups of the launch * run_blocks().
template <typename T>
__global__ void __launch_bounds__(THREADS) copy_image(const __grid_constant__ MomentsPolicy<T> policy,
                                                      const __grid_constant__ Maps<T> maps, int image, int64_t runs) {
  const Group g = policy.state(maps.first_group + blockIdx.x / runs);
  const Windows& w = policy.op.windows;
  each_of_run(w, blockIdx.x % runs, [&](int64_t i) {
    *maps.at(image, g.number, i) = pixel_of<T>(policy.op, image, g.n, g.c, place_of(w, i));
  });
}

// The workspace: images that must be copied, then the maps of a gradient.
struct Room {
  DType computed;
  bool dense;
  int64_t images, most, S;
  Room(const LocalMoments& op, int images)
      : computed(op.a.dtype == F64 ? F64 : F32),
        dense(is_dense(op.windows, op.a, computed) && (images == 1 || is_dense(op.windows, op.b, computed))),
        images(images),
        most(groups_at_once(op.windows, groups_of(op))),
        S(pixels_of(op.windows)) {}
  int64_t copies() const { return dense ? 0 : images; }
  int64_t bytes(bool gradient) const {
    return (copies() + (gradient ? images + 1 : 0)) * most * S * (computed == F64 ? 8 : 4);
  }
};

template <typename T, int IMAGES>
cudaError_t run(const LocalMoments& op, bool gradient, void* workspace, cudaStream_t stream) {
  const Windows& w = op.windows;
  const Room room(op, IMAGES);
  const int64_t groups = groups_of(op), runs = run_blocks(w);
  const int64_t most = room.dense && !gradient ? groups : room.most;
  const Tiles forward = tiles_of<Moments<T, IMAGES>>(w, room.most);
  const Tiles in = tiles_of<MomentsCentres<T, IMAGES>>(w, room.most);
  const Tiles out = tiles_of<MomentsGradient<T, IMAGES>>(w, room.most);
  for (int64_t first = 0; first < groups; first += most) {
    const int64_t count = min_(most, groups - first);
    const Maps<T> copies{static_cast<T*>(workspace), first, most, room.S};
    Images<T, IMAGES> images;
    for (int i = 0; i < IMAGES; ++i) {
      images.image[i] = reinterpret_cast<const T*>((i == 0 ? op.a : op.b).data) + first * room.S;
      if (room.dense) continue;
      images.image[i] = copies.first(i);
      SEGFUSE_TRY(launch(copy_image<T>, static_cast<unsigned>(count * runs), THREADS, 0, stream, MomentsPolicy<T>{op},
                         copies, i, runs));
    }
    if (!gradient) {
      SEGFUSE_TRY(run_march(Moments<T, IMAGES>{{op}}, images, forward, first, count, stream));
      continue;
    }
    const Maps<T> maps{copies.first(room.copies()), first, most, room.S};
    SEGFUSE_TRY(run_march(MomentsCentres<T, IMAGES>{{op}, maps}, images, in, first, count, stream));
    Images<T, 2 * IMAGES + 1> sent;
    for (int k = 0; k <= IMAGES; ++k) sent.image[k] = maps.first(k);
    for (int i = 0; i < IMAGES; ++i) sent.image[IMAGES + 1 + i] = images.image[i];
    SEGFUSE_TRY(run_march(MomentsGradient<T, IMAGES>{{op}}, sent, out, first, count, stream));
  }
  return cudaSuccess;
}

cudaError_t run(const LocalMoments& op, bool gradient, void* workspace, cudaStream_t stream) {
  const bool pair = images_of(op) == 2;
  if (op.a.dtype == F64)
    return pair ? run<double, 2>(op, gradient, workspace, stream) : run<double, 1>(op, gradient, workspace, stream);
  return pair ? run<float, 2>(op, gradient, workspace, stream) : run<float, 1>(op, gradient, workspace, stream);
}

}  // namespace

namespace cuda {

int64_t local_moments_workspace(const LocalMoments& op, int images, bool gradient) {
  return Room(op, images).bytes(gradient);
}

cudaError_t local_moments_forward(const LocalMoments& op, void* workspace, cudaStream_t stream) {
  return run(op, false, workspace, stream);
}

cudaError_t local_moments_backward(const LocalMoments& op, void* workspace, cudaStream_t stream) {
  return run(op, true, workspace, stream);
}

}  // namespace cuda
}  // namespace segfuse
