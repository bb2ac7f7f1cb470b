// SSIM on a GPU: SSIM = L S with L = (2 mp my + c1) / (mp^2 + my^2 + c1) and S = (2 cov + c2) / (vp + vy + c2).
//
// Floor:  forward the logit and the label of a pixel, 5 B for float32 and uint8; with the gradient 4 B more.
// Memory: forward reads logits and target. A gradient reads them again and is written once. Between, the images p and y
//         and three maps of the centres stay in the second-level cache where it is large enough. Softmax writes and
//         reads the probabilities of every class, and their gradients.
// Order:  a block leaves its sums; they are added by index.
#include "windows.cuh"

namespace segfuse {
namespace {

// The sums, and what every centre sends back.
template <typename Storage, bool GRADIENT>
struct SsimCentres : LossPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  using Filter = Gather<T, 2, true, true>;
  T c1, c2;
  bool contrast;
  double* partial;  // or nullptr
  Maps<T> images, maps;

  struct State {
    Group at;
    T factor, sum, count;
  };
  __device__ __forceinline__ State state(int64_t number) const {
    const Group g = this->of(number);
    const double* k = this->op.coefficient;
    return {g, k == nullptr ? T(1) : static_cast<T>(k[g.n * this->op.windows.C + g.c]), T(0), T(0)};
  }
  __device__ __forceinline__ void centre(State& state, const Place& at, const T* moments) const {
    const WindowLoss& op = this->op;
    const Group& g = state.at;
    const int64_t i = pixel_number(op.windows, at);
    T u = T(0), h = T(0), by_var = T(0), by_cov = T(0);
    if (has_window(op.windows, at)) {
      bool broken = false;
      u = weight_of<T>(op, g.n, g.c, at, target_of<T>(op, g.n, g.c, at).valid, broken);
    }
    if (u != T(0)) {
      const T mp = moments[0], my = moments[1], vp = moments[2], vy = moments[3], cov = moments[4];
      const T shade = contrast ? T(0) : T(1);  // whether the luminance counts
      const T spread = T(1) / (vp + vy + c2), bright = T(1) / (mp * mp + my * my + c1);
      const T similar = (T(2) * cov + c2) * spread, light = (T(2) * mp * my + c1) * bright;
      const T lit = shade * light + (T(1) - shade);
      state.sum += u * similar * lit;
      state.count += u;
      const T k = state.factor * u;
      by_cov = T(2) * k * lit * spread;
      by_var = -by_cov * similar;
      h = shade * k * similar * T(2) * (my - mp * light) * bright;
    }
    if (!GRADIENT) return;
    if (u != T(0)) {
      h += by_var * (*images.at(P, g.number, i) - moments[0]) + by_cov * (*images.at(Y, g.number, i) - moments[1]);
    }
    *maps.at(0, g.number, i) = h;
    *maps.at(1, g.number, i) = by_var;
    *maps.at(2, g.number, i) = by_cov;
  }
  __device__ __forceinline__ void finish(const State& state, int64_t block) const {
    if (partial != nullptr) store_partial(state.sum, state.count, partial + block * 2);
  }
};

template <typename Storage>
struct SsimGradient : LossPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  using Filter = Scatter<T, 2>;

  __device__ __forceinline__ Group state(int64_t number) const { return this->of(number); }
  __device__ __forceinline__ void centre(const Group& g, const Place& at, const T* gradient) const {
    store_gradient<Storage>(this->op, g.n, g.c, at, gradient[0], T(0));
  }
  __device__ void finish(const Group&, int64_t) const {}
};

constexpr int MAPS = 3;

// The workspace: partial sums, the images, then the maps of a gradient.
struct Room {
  int64_t groups, most, pixels;
  Partial partial;
  explicit Room(const WindowLoss& op)
      : groups(groups_of(op)), most(groups_at_once(op.windows, groups)), pixels(most * pixels_of(op.windows)) {
    SEGFUSE_WITH_STORAGE(op.input.dtype,
                         { partial = {groups, tiles_of<SsimCentres<Storage, true>>(op.windows, most).in_group()}; })
  }
};

template <typename Storage>
cudaError_t run(const Ssim& op, bool gradient, double* sums, void* workspace, cudaStream_t stream) {
  using T = typename Compute<Storage>::Type;
  using Forward = SsimCentres<Storage, false>;
  using Centres = SsimCentres<Storage, true>;
  using Gradient = SsimGradient<Storage>;
  const WindowLoss& loss = op.loss;
  const Windows& w = loss.windows;
  const Room room(loss);
  double* partial = sums == nullptr ? nullptr : room.partial.sums(workspace);
  int* broken = sums == nullptr ? nullptr : room.partial.broken(workspace);
  T* images_room = reinterpret_cast<T*>(static_cast<char*>(workspace) + room.partial.bytes());
  const T c1 = static_cast<T>(op.c1), c2 = static_cast<T>(op.c2);
  const Tiles in = tiles_of<Centres>(w, room.most), out = tiles_of<Gradient>(w, room.most);
  if (sums != nullptr) SEGFUSE_TRY(room.partial.clear(workspace, stream));
  SEGFUSE_TRY(run_softmax<Storage>(loss, stream));
  for (int64_t first = 0; first < room.groups; first += room.most) {
    const int64_t count = min_(room.most, room.groups - first);
    const Maps<T> images{images_room, first, room.most, pixels_of(w)};
    const Maps<T> maps{images.first(IMAGES_OF_LOSS), first, room.most, pixels_of(w)};
    const Images<T, 2> pair{{images.first(P), images.first(Y)}};
    SEGFUSE_TRY(run_images<Storage>(loss, images, count, broken, stream));
    if (!gradient) {
      const Forward policy{{loss}, c1, c2, op.contrast, partial, images, maps};
      SEGFUSE_TRY(run_march(policy, pair, in, first, count, stream));
      continue;
    }
    const Centres policy{{loss}, c1, c2, op.contrast, partial, images, maps};
    SEGFUSE_TRY(run_march(policy, pair, in, first, count, stream));
    const Images<T, 5> sent{{maps.first(0), maps.first(1), maps.first(2), pair.image[0], pair.image[1]}};
    SEGFUSE_TRY(run_march(Gradient{{loss}}, sent, out, first, count, stream));
  }
  if (gradient) SEGFUSE_TRY(run_softmax_gradient<Storage>(loss, stream));
  return sums == nullptr ? cudaSuccess : room.partial.add(loss, workspace, sums, stream);
}

}  // namespace

namespace cuda {

int64_t ssim_workspace(const Ssim& op, bool gradient) {
  const Room room(op.loss);
  const int64_t value = op.loss.input.dtype == F64 ? sizeof(double) : sizeof(float);
  return room.partial.bytes() + (IMAGES_OF_LOSS + (gradient ? MAPS : 0)) * room.pixels * value;
}

cudaError_t ssim_forward(const Ssim& op, double* sums, void* workspace, cudaStream_t stream) {
  SEGFUSE_WITH_STORAGE(op.loss.input.dtype,
                       { return run<Storage>(op, op.loss.output.data != nullptr, sums, workspace, stream); })
  return cudaSuccess;
}

cudaError_t ssim_backward(const Ssim& op, void* workspace, cudaStream_t stream) {
  SEGFUSE_WITH_STORAGE(op.loss.input.dtype, { return run<Storage>(op, true, nullptr, workspace, stream); })
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace segfuse
