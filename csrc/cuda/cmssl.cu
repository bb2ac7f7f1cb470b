// CMSSL on a GPU: r(a) = (a - mean + c4) / (std + c4), e = |r(y) - r(p)|, and the cross-entropy where e exceeds a share
// of the largest e.
//
// Floor:  forward twice the logit and the label of a pixel, 10 B for float32 and uint8, as the threshold must be known;
//         backward once, and the gradient, 9 B.
// Memory: forward reads logits and target and writes e; a second look reads all three. A gradient reads logits and
//         target and is written once. Between, the images p and y and four maps of the centres stay in the second-level
//         cache where it is large enough. Softmax writes and reads the probabilities of every class, and their
//         gradients.
// Order:  the largest e is a maximum of the bits of numbers >= 0, which does not depend on the order; NaN is above all
//         of them. Sums of blocks are added by index.
#include "windows.cuh"

namespace segfuse {
namespace {

// Numbers >= 0 by their bits.
__device__ __forceinline__ unsigned bits_of(float x) { return as_bits(x) & 0x7fffffffu; }
__device__ __forceinline__ unsigned long long bits_of(double x) {
  unsigned long long bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & ~(1ull << 63);
}
__device__ __forceinline__ float number_of(unsigned bits) { return as_float(bits); }
__device__ __forceinline__ double number_of(unsigned long long bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
template <typename T>
using Bits = decltype(bits_of(T()));

__device__ __forceinline__ float root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ double root(double x) { return __dsqrt_rn(x); }

// r of a pixel
template <typename T>
__device__ __forceinline__ T relative(T a, T mean, T deviation, T c4) {
  return (a - mean + c4) / (deviation + c4);
}

// Which maximum a group takes part in.
__device__ __forceinline__ int64_t slot_of(Scope scope, const Group& g) {
  return scope == SAMPLE ? g.n : (scope == CLASS ? g.c : 0);
}

template <typename Storage>
struct CmsslPolicy : LossPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  T c4, eps;
};

// e of every pixel, 0 where there is no window, and the largest.
template <typename Storage>
struct CmsslErrors : CmsslPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  using Filter = Gather<T, 2, true, false>;
  Maps<T> images;
  T* error;
  Scope scope;
  Bits<T>* largest;

  struct State {
    Group at;
    Bits<T> largest;
  };
  __device__ __forceinline__ State state(int64_t number) const { return {this->of(number), 0}; }
  __device__ __forceinline__ void centre(State& state, const Place& at, const T* moments) const {
    const WindowLoss& op = this->op;
    const Group& g = state.at;
    const T c4 = this->c4, eps = this->eps;
    const int64_t i = pixel_number(op.windows, at);
    Bits<T> e = 0;
    if (has_window(op.windows, at)) {
      const T d = relative(*images.at(P, g.number, i), moments[0], root(moments[2] + eps), c4) -
                  relative(*images.at(Y, g.number, i), moments[1], root(moments[3] + eps), c4);
      e = target_of<T>(op, g.n, g.c, at).valid ? bits_of(d) : 0;
    }
    error[(g.n * op.windows.C + g.c) * pixels_of(op.windows) + i] = number_of(e);
    state.largest = max_(state.largest, e);
  }
  __device__ __forceinline__ void finish(const State& state, int64_t) const {
    Bits<T> most = state.largest;
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) most = max_(most, __shfl_xor_sync(ALL_LANES, most, step));
    if ((threadIdx.y * blockDim.x + threadIdx.x) % WARP == 0) atomicMax(largest + slot_of(scope, state.at), most);
  }
};

// threshold [N, C] of every group. One thread for each.
template <typename T>
__global__ void __launch_bounds__(THREADS) set_thresholds(const __grid_constant__ Cmssl op, const Bits<T>* largest) {
  const Windows& w = op.loss.windows;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= w.N * w.C) return;
  const Group g{i, i / w.C, i % w.C};
  const double top = op.scope == FIXED ? 1.0 : static_cast<double>(number_of(largest[slot_of(op.scope, g)]));
  op.threshold[i] = g.c >= op.loss.first_class || op.scope == FIXED ? op.beta * top : 0.0;
}

constexpr int64_t SUM_PIXELS = 16 * THREADS;  // of a block

// Partial sums of u f e l and f. Grid: groups * blocks of a group.
template <typename Storage>
__global__ void __launch_bounds__(THREADS)
    cmssl_sums(const __grid_constant__ LossPolicy<Storage> policy, const typename Compute<Storage>::Type* error,
               const double* threshold, double* partial, int64_t blocks) {
  using T = typename Compute<Storage>::Type;
  const WindowLoss& op = policy.op;
  const Group g = policy.of(blockIdx.x / blocks);
  const int64_t S = pixels_of(op.windows), plane = g.n * op.windows.C + g.c;
  const int64_t begin = blockIdx.x % blocks * SUM_PIXELS, end = min_(begin + SUM_PIXELS, S);
  const T cut = static_cast<T>(threshold[plane]);
  T total = T(0), selected = T(0);
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    const Place at = place_of(op.windows, i);
    const Element<T> own = element<Storage>(op, g.n, g.c, at);
    bool broken = false;
    const T u = weight_of<T>(op, g.n, g.c, at, own.valid, broken), e = error[plane * S + i];
    const bool chosen = own.valid && !(e <= cut);
    total += chosen && u != T(0) ? u * e * own.l : T(0);
    selected += chosen ? T(1) : T(0);
  }
  store_partial(total, selected, partial + blockIdx.x * int64_t(2));
}

// Every centre: maps h and by_var, then its own part of d loss / dp and the factor of its cross-entropy.
template <typename Storage>
struct CmsslCentres : CmsslPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  using Filter = Gather<T, 2, true, false>;
  const double* threshold;
  bool detach;
  Maps<T> maps;

  struct State {
    Group at;
    T factor, cut;
  };
  __device__ __forceinline__ State state(int64_t number) const {
    const Group g = this->of(number);
    const int64_t plane = g.n * this->op.windows.C + g.c;
    return {g, static_cast<T>(this->op.coefficient[plane]), static_cast<T>(threshold[plane])};
  }
  __device__ __forceinline__ void centre(const State& state, const Place& at, const T* moments) const {
    const WindowLoss& op = this->op;
    const Group& g = state.at;
    const T c4 = this->c4, eps = this->eps;
    T h = T(0), by_var = T(0), direct = T(0), entropy = T(0);
    if (has_window(op.windows, at)) {
      const Element<T> own = element<Storage>(op, g.n, g.c, at);
      const T deviation = root(moments[2] + eps), rp = relative(own.p, moments[0], deviation, c4);
      const T d = rp - relative(own.y, moments[1], root(moments[3] + eps), c4), e = d < T(0) ? -d : d;
      if (own.valid && !(e <= state.cut)) {
        bool broken = false;
        const T weight = state.factor * weight_of<T>(op, g.n, g.c, at, true, broken);
        const T sign = d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);
        const T finite = own.l > T(3e38) ? T(0) : own.l;  // an infinite loss says nothing about e
        direct = weight * finite * sign / (deviation + c4);
        by_var = -direct * rp / deviation;
        h = -direct + by_var * (own.p - moments[0]);
        entropy = weight * e;
      }
    }
    if (detach) return store_gradient<Storage>(op, g.n, g.c, at, T(0), entropy);
    const int64_t i = pixel_number(op.windows, at);
    *maps.at(0, g.number, i) = h;
    *maps.at(1, g.number, i) = by_var;
    *maps.at(2, g.number, i) = direct;
    *maps.at(3, g.number, i) = entropy;
  }
  __device__ void finish(const State&, int64_t) const {}
};

template <typename Storage>
struct CmsslGradient : LossPolicy<Storage> {
  using T = typename LossPolicy<Storage>::T;
  using Filter = Scatter<T, 1>;
  Maps<T> maps;  // of the centres

  __device__ __forceinline__ Group state(int64_t number) const { return this->of(number); }
  __device__ __forceinline__ void centre(const Group& g, const Place& at, const T* gradient) const {
    const int64_t i = pixel_number(this->op.windows, at);
    const T direct = *maps.at(2, g.number, i), entropy = *maps.at(3, g.number, i);
    store_gradient<Storage>(this->op, g.n, g.c, at, gradient[0] + direct, entropy);
  }
  __device__ void finish(const Group&, int64_t) const {}
};

constexpr int MAPS = 4;

// The workspace: the largest e of every scope, partial sums, the images, then the maps of a gradient.
struct Room {
  int64_t slots, groups, most, pixels;
  Partial partial;
  explicit Room(const WindowLoss& op)
      : slots(max_(op.windows.N, max_(op.windows.C, int64_t(1))) * static_cast<int64_t>(sizeof(double))),
        groups(groups_of(op)),
        most(groups_at_once(op.windows, groups)),
        pixels(most * pixels_of(op.windows)),
        partial{groups, (pixels_of(op.windows) + SUM_PIXELS - 1) / SUM_PIXELS} {}
  int64_t sums() const { return slots + partial.bytes(); }
};

template <typename Storage>
cudaError_t forward(const Cmssl& op, double* sums, void* workspace, cudaStream_t stream) {
  using T = typename Compute<Storage>::Type;
  const WindowLoss& loss = op.loss;
  const Windows& w = loss.windows;
  const Room room(loss);
  Bits<T>* largest = static_cast<Bits<T>*>(workspace);
  void* partial = static_cast<char*>(workspace) + room.slots;
  T* images_room = reinterpret_cast<T*>(static_cast<char*>(workspace) + room.sums());
  T* error = static_cast<T*>(op.error);
  const Tiles tiles = tiles_of<CmsslErrors<Storage>>(w, room.most);
  SEGFUSE_TRY(cudaMemsetAsync(largest, 0, room.slots, stream));
  SEGFUSE_TRY(room.partial.clear(partial, stream));
  SEGFUSE_TRY(run_softmax<Storage>(loss, stream));
  for (int64_t first = 0; first < room.groups; first += room.most) {
    const int64_t count = min_(room.most, room.groups - first);
    const Maps<T> images{images_room, first, room.most, pixels_of(w)};
    SEGFUSE_TRY(run_images<Storage>(loss, images, count, room.partial.broken(partial), stream));
    const CmsslErrors<Storage> policy{
        {{loss}, static_cast<T>(op.c4), static_cast<T>(op.variance_eps)}, images, error, op.scope, largest};
    SEGFUSE_TRY(run_march(policy, {{images.first(P), images.first(Y)}}, tiles, first, count, stream));
  }
  const unsigned blocks = static_cast<unsigned>((w.N * w.C + THREADS - 1) / THREADS);
  SEGFUSE_TRY(launch(set_thresholds<T>, blocks, THREADS, 0, stream, op, largest));
  SEGFUSE_TRY(launch(cmssl_sums<Storage>, static_cast<unsigned>(room.groups * room.partial.blocks), THREADS,
                     THREADS / WARP * 2 * sizeof(double), stream, LossPolicy<Storage>{loss}, error, op.threshold,
                     room.partial.sums(partial), room.partial.blocks));
  return room.partial.add(loss, partial, sums, stream);
}

template <typename Storage>
cudaError_t backward(const Cmssl& op, void* workspace, cudaStream_t stream) {
  using T = typename Compute<Storage>::Type;
  using Centres = CmsslCentres<Storage>;
  using Gradient = CmsslGradient<Storage>;
  const WindowLoss& loss = op.loss;
  const Windows& w = loss.windows;
  const Room room(loss);
  const Tiles in = tiles_of<Centres>(w, room.most), out = tiles_of<Gradient>(w, room.most);
  SEGFUSE_TRY(run_softmax<Storage>(loss, stream));
  for (int64_t first = 0; first < room.groups; first += room.most) {
    const int64_t count = min_(room.most, room.groups - first);
    const Maps<T> images{static_cast<T*>(workspace), first, room.most, pixels_of(w)};
    const Maps<T> maps{images.first(IMAGES_OF_LOSS), first, room.most, pixels_of(w)};
    SEGFUSE_TRY(run_images<Storage>(loss, images, count, nullptr, stream));
    const Centres policy{
        {{loss}, static_cast<T>(op.c4), static_cast<T>(op.variance_eps)}, op.threshold, op.detach, maps};
    SEGFUSE_TRY(run_march(policy, {{images.first(P), images.first(Y)}}, in, first, count, stream));
    if (op.detach) continue;
    const Images<T, 3> sent{{maps.first(0), maps.first(1), images.first(P)}};
    SEGFUSE_TRY(run_march(Gradient{{loss}, maps}, sent, out, first, count, stream));
  }
  return run_softmax_gradient<Storage>(loss, stream);
}

}  // namespace

namespace cuda {

int64_t cmssl_workspace(const Cmssl& op, bool gradient) {
  const Room room(op.loss);
  const int64_t value = op.loss.input.dtype == F64 ? sizeof(double) : sizeof(float);
  if (!gradient) return room.sums() + IMAGES_OF_LOSS * room.pixels * value;
  return (IMAGES_OF_LOSS + (op.detach ? 0 : MAPS)) * room.pixels * value;
}

cudaError_t cmssl_forward(const Cmssl& op, double* sums, void* workspace, cudaStream_t stream) {
  SEGFUSE_WITH_STORAGE(op.loss.input.dtype, { return forward<Storage>(op, sums, workspace, stream); })
  return cudaSuccess;
}

cudaError_t cmssl_backward(const Cmssl& op, void* workspace, cudaStream_t stream) {
  SEGFUSE_WITH_STORAGE(op.loss.input.dtype, { return backward<Storage>(op, workspace, stream); })
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace segfuse
