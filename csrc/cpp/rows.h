// Runs of stored values as T and back. Included by <op>_kernels.cpp, once per instruction set (SEGFUSE_ISA names it).
// Nothing from the standard library is instantiated here: an inline function compiled for AVX-512 must not be
// the copy that the linker keeps for everybody.
#pragma once
#include "../dtypes.h"
#include "kernels.h"

#define SIMD _Pragma("omp simd")
#define SIMD_REDUCE(...) _Pragma(SIMD_STRING(omp simd reduction(__VA_ARGS__)))
#define SIMD_STRING(x) #x
// Into its caller: all stored types in a function of their own took half logits 1.3 times as long.
#ifdef _MSC_VER
#define INLINE __forceinline
#else
#define INLINE inline __attribute__((always_inline))
#endif

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

template <typename T>
constexpr T CLAMP = T(1e-7);  // probabilities enter a logarithm no smaller than this

// Calls f with the data of a view, as what is stored there.
template <typename F>
INLINE void as_stored(const View& v, F f) {
  switch (v.dtype) {
    case F32:
      return f(reinterpret_cast<const float*>(v.data));
    case F64:
      return f(reinterpret_cast<const double*>(v.data));
    case F16:
      return f(reinterpret_cast<const half*>(v.data));
    case BF16:
      return f(reinterpret_cast<const bfloat16*>(v.data));
    case BOOL:
    case U8:
      return f(reinterpret_cast<const uint8_t*>(v.data));
    case I8:
      return f(reinterpret_cast<const int8_t*>(v.data));
    case I16:
      return f(reinterpret_cast<const int16_t*>(v.data));
    case U16:
      return f(reinterpret_cast<const uint16_t*>(v.data));
    case I32:
      return f(reinterpret_cast<const int32_t*>(v.data));
    case U32:
      return f(reinterpret_cast<const uint32_t*>(v.data));
    case I64:
      return f(reinterpret_cast<const int64_t*>(v.data));
    case U64:
      return f(reinterpret_cast<const uint64_t*>(v.data));
  }
}

// The same for results: computed in double they are stored as double or float, in float as float or half.
template <typename F>
INLINE void as_results(const View& v, double, F f) {
  v.dtype == F64 ? f(reinterpret_cast<double*>(v.data)) : f(reinterpret_cast<float*>(v.data));
}
template <typename F>
INLINE void as_results(const View& v, float, F f) {
  if (v.dtype == F32) f(reinterpret_cast<float*>(v.data));
  if (v.dtype == F16) f(reinterpret_cast<half*>(v.data));
  if (v.dtype == BF16) f(reinterpret_cast<bfloat16*>(v.data));
}

// Integers above 2^24 (float) lose their last bits: class numbers are far below.
template <typename Stored, typename T>
inline void read(const Stored* in, int64_t stride, int64_t length, T* out) {
  if (stride == 1) {
    SIMD for (int64_t i = 0; i < length; ++i) out[i] = static_cast<T>(widen(in[i]));
  } else {
    for (int64_t i = 0; i < length; ++i) out[i] = static_cast<T>(widen(in[i * stride]));
  }
}

template <typename Stored, typename T>
inline void write(const T* in, int64_t stride, int64_t length, Stored* out) {
  if (stride == 1) {
    SIMD for (int64_t i = 0; i < length; ++i) narrow(in[i], out[i]);
  } else {
    for (int64_t i = 0; i < length; ++i) narrow(in[i], out[i * stride]);
  }
}

}  // namespace
}  // namespace SEGFUSE_ISA
}  // namespace segfuse
