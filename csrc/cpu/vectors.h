// The compiler's vectors (GCC and clang), so that one text serves SSE, AVX2, AVX-512 and NEON; which is chosen at run
// time. What a kernel does with them is LAVIT_INLINE, up to the body's `run<Bytes>`, which with_16, with_32 and with_64
// compile for an instruction set each.
//
// One definition for all kernels: their objects are linked into one library, where two of a name are one or the other.
#pragma once

#include "bfloat16.h"

#include <algorithm>

// Vectors are arguments of what is inlined only. Not undone: templates are instantiated at the end of a file.
#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__)
#define LAVIT_AVX2 __attribute__((target("avx2,fma")))
#define LAVIT_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#endif

namespace lavit::cpu {

// Not of a template's parameter: GCC takes such a vector for its element until the template is instantiated.
template <class Real, int Bytes>
struct Vectors;

#define LAVIT_VECTORS(real, integer, word, bytes)                     \
  template <>                                                         \
  struct Vectors<real, bytes> {                                       \
    using Int = integer;                                              \
    typedef real Reals __attribute__((vector_size(bytes)));           \
    typedef integer Ints __attribute__((vector_size(bytes)));         \
    typedef word Words __attribute__((vector_size(bytes)));           \
    typedef uint16_t Shorts __attribute__((vector_size(bytes / 2)));  \
  };
LAVIT_VECTORS(float, int32_t, uint32_t, 16)
LAVIT_VECTORS(float, int32_t, uint32_t, 32)
LAVIT_VECTORS(float, int32_t, uint32_t, 64)
LAVIT_VECTORS(double, int64_t, uint64_t, 16)
LAVIT_VECTORS(double, int64_t, uint64_t, 32)
LAVIT_VECTORS(double, int64_t, uint64_t, 64)
#undef LAVIT_VECTORS

template <class T, int Bytes>
struct Lanes {
  using Real = T;
  using Int = typename Vectors<T, Bytes>::Int;
  using Vector = typename Vectors<T, Bytes>::Reals;
  using Ints = typename Vectors<T, Bytes>::Ints;
  using Words = typename Vectors<T, Bytes>::Words;
  static constexpr int64_t kLanes = Bytes / sizeof(T);

  static LAVIT_INLINE Vector all(T x) { return Vector{} + x; }

  static LAVIT_INLINE Vector load(const T* from) {
    Vector x;
    std::memcpy(&x, from, Bytes);
    return x;
  }

  static LAVIT_INLINE Vector load(const BFloat16* from) {
    typename Vectors<T, Bytes>::Shorts half;
    std::memcpy(&half, from, Bytes / 2);
    return reinterpret_cast<Vector>(__builtin_convertvector(half, Words) << 16);
  }

  static LAVIT_INLINE void store(T* to, const Vector& x) { std::memcpy(to, &x, Bytes); }

  static LAVIT_INLINE Ints counted_from(int64_t first) {
    Int place[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) place[i] = static_cast<Int>(first + i);
    Ints x;
    std::memcpy(&x, place, Bytes);
    return x;
  }

  static LAVIT_INLINE T total(const Vector& x) {
    if constexpr (Bytes > 16) {
      using Half = Lanes<T, Bytes / 2>;
      typename Half::Vector halves[2];
      std::memcpy(halves, &x, Bytes);
      return Half::total(halves[0] + halves[1]);
    } else {
      T sum = x[0];
      for (int64_t i = 1; i < kLanes; ++i) sum += x[i];
      return sum;
    }
  }
};

struct alignas(64) Line {
  unsigned char bytes[64];
};

// Bytes of the widest vectors that this machine has.
inline int64_t widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return 64;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
  return 16;
}

// Bytes of the vectors to compute with: those asked for, 0 for the widest.
inline int64_t checked_width(int64_t width) {
  STD_TORCH_CHECK(width == 0 || width == 16 || width == 32 || width == 64, "width: expected 0, 16, 32 or 64");
  STD_TORCH_CHECK(width <= widest(), "width: this machine has no vectors of ", width, " bytes");
  return width == 0 ? widest() : width;
}

template <class Body, class... Args>
void with_16(const Body& body, Args... args) {
  body.template run<16>(args...);
}

#if defined(__x86_64__)
template <class Body, class... Args>
LAVIT_AVX2 void with_32(const Body& body, Args... args) {
  body.template run<32>(args...);
}

template <class Body, class... Args>
LAVIT_AVX512 void with_64(const Body& body, Args... args) {
  body.template run<64>(args...);
}
#endif

// A function that calls body.run<width>(args...), compiled for vectors of that width.
template <class Body, class... Args>
auto compiled_for(int64_t width) {
  void (*part)(const Body&, Args...) = with_16<Body, Args...>;
#if defined(__x86_64__)
  if (width == 32) part = with_32<Body, Args...>;
  if (width == 64) part = with_64<Body, Args...>;
#else
  static_cast<void>(width);
#endif
  return part;
}

// body.run<width>(begin, end) over [0, n), on several threads where more than `grain` is to be done.
template <class Body>
void in_lanes(const Body& body, int64_t n, int64_t grain, int64_t width = widest()) {
  const auto part = compiled_for<Body, int64_t, int64_t>(width);
  if (n <= grain) return part(body, 0, n);
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { part(body, begin, end); });
}

}  // namespace lavit::cpu
