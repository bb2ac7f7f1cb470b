// SSIM on a GPU: SSIM = L S with L = (2 mp my + c1) / (mp^2 + my^2 + c1) and S = (2 cov + c2) / (vp + vy + c2).
//
// Memory: forward reads logits and target. A gradient reads them twice, writes and reads three maps of the centres, and
//         is written once. Softmax writes and reads the probabilities of every class, and their gradients.
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
  Maps<T> maps;

  struct State {
    Group at;
    T factor, sum, count;
    bool broken;
  };
  __device__ __forceinline__ State state(int64_t number) const {
    const Group g = this->of(number);
    const double* k = this->op.coefficient;
    return {g, k == nullptr ? T(1) : static_cast<T>(k[g.n * this->op.windows.C + g.c]), T(0), T(0), false};
  }
  __device__ __forceinline__ void load(State& state, const Place& at, T* v) const {
    const Element<T> e = element<Storage>(this->op, state.at.n, state.at.c, at);
    state.broken |= e.broken;
    v[0] = e.p;
    v[1] = e.y;
  }
  __device__ __forceinline__ void centre(State& state, const Place& at, const T* moments) const {
    const WindowLoss& op = this->op;
    const Group& g = state.at;
    const int64_t i = pixel_number(op.windows, at);
    T u = T(0), h = T(0), by_var = T(0), by_cov = T(0);
    Element<T> own{};
    if (has_window(op.windows, at)) {
      own = GRADIENT ? element<Storage>(op, g.n, g.c, at) : target_of<T>(op, g.n, g.c, at);
      u = weight_of<T>(op, g.n, g.c, at, own.valid, state.broken);
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
      h = shade * k * similar * T(2) * (my - mp * light) * bright + by_var * (own.p - mp) + by_cov * (own.y - my);
    }
    if (!GRADIENT) return;
    *maps.at(0, g.number, i) = h;
    *maps.at(1, g.number, i) = by_var;
    *maps.at(2, g.number, i) = by_cov;
  }
  __device__ __forceinline__ void finish(const State& state, int64_t block) const {
    if (partial != nullptr) store_partial(state.sum, state.count, state.broken, partial + block * PARTS);
  }
};

template <typename Storage>
struct SsimGradient : LossPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  using Filter = Scatter<T, 2>;
  Maps<T> maps;

  __device__ __forceinline__ Group state(int64_t number) const { return this->of(number); }
  __device__ __forceinline__ void load(const Group& g, const Place& at, T* v) const {
    const int64_t i = pixel_number(this->op.windows, at);
#pragma unroll
    for (int k = 0; k < Filter::MAPS; ++k) v[k] = *maps.at(k, g.number, i);
    const Element<T> e = element<Storage>(this->op, g.n, g.c, at);
    v[Filter::MAPS] = e.p;
    v[Filter::MAPS + 1] = e.y;
  }
  __device__ __forceinline__ void centre(const Group& g, const Place& at, const T* gradient) const {
    store_gradient<Storage>(this->op, g.n, g.c, at, gradient[0], T(0));
  }
  __device__ void finish(const Group&, int64_t) const {}
};

// The workspace: partial sums, then the maps of a gradient.
struct Room {
  int64_t groups, most, blocks, partial;  // partial: bytes
  explicit Room(const Ssim& op) : groups(groups_of(op.loss)), most(groups_at_once(op.loss.windows, groups)) {
    SEGFUSE_WITH_STORAGE(op.loss.input.dtype,
                         { blocks = tiles_of<SsimCentres<Storage, true>>(op.loss.windows, most).in_group(); })
    partial = groups * blocks * PARTS * static_cast<int64_t>(sizeof(double));
  }
};

template <typename Storage>
cudaError_t run(const Ssim& op, bool gradient, double* sums, void* workspace, cudaStream_t stream) {
  using T = typename Compute<Storage>::Type;
  using Forward = SsimCentres<Storage, false>;
  using Centres = SsimCentres<Storage, true>;
  using Gradient = SsimGradient<Storage>;
  const WindowLoss& loss = op.loss;
  const Room room(op);
  double* partial = sums == nullptr ? nullptr : static_cast<double*>(workspace);
  T* maps_room = reinterpret_cast<T*>(static_cast<char*>(workspace) + room.partial);
  const T c1 = static_cast<T>(op.c1), c2 = static_cast<T>(op.c2);
  const Tiles in = tiles_of<Centres>(loss.windows, room.most), out = tiles_of<Gradient>(loss.windows, room.most);
  SEGFUSE_TRY(run_softmax<Storage>(loss, stream));
  if (!gradient) {
    const Forward policy{{loss}, c1, c2, op.contrast, partial, {}};
    SEGFUSE_TRY(run_march(policy, in, 0, room.groups, stream));
  }
  for (int64_t first = 0; gradient && first < room.groups; first += room.most) {
    const int64_t count = min_(room.most, room.groups - first);
    const Maps<T> maps{maps_room, first, room.most, pixels_of(loss.windows)};
    SEGFUSE_TRY(run_march(Centres{{loss}, c1, c2, op.contrast, partial, maps}, in, first, count, stream));
    SEGFUSE_TRY(run_march(Gradient{{loss}, maps}, out, first, count, stream));
  }
  if (gradient && loss.grad_probability != nullptr) SEGFUSE_TRY(run_softmax_gradient<Storage>(loss, stream));
  return sums == nullptr ? cudaSuccess : sum_groups(loss, partial, room.blocks, sums, stream);
}

}  // namespace

namespace cuda {

int64_t ssim_workspace(const Ssim& op, bool gradient) {
  const Room room(op);
  const int64_t value = op.loss.input.dtype == F64 ? sizeof(double) : sizeof(float);
  return room.partial + (gradient ? room.most * pixels_of(op.loss.windows) * 3 * value : 0);
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
