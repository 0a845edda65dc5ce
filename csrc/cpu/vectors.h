// The compiler's vectors (GCC and clang), so that one text serves SSE, AVX2, AVX-512 and NEON; which is chosen at run
// time. A function on them is LAVIT_INLINE and takes them by reference; only its outermost caller has a `target`.
#pragma once

#include <cstdint>

namespace lavit::cpu {

#define LAVIT_INLINE inline __attribute__((always_inline))  // so that it is compiled for its caller's instruction set

// Not of a template's parameter: GCC takes such a vector for its element until the template is instantiated.
template <class Real, int Bytes>
struct Vectors;

#define LAVIT_VECTORS(real, integer, word, bytes)                  \
  template <>                                                      \
  struct Vectors<real, bytes> {                                    \
    typedef real Reals __attribute__((vector_size(bytes)));        \
    typedef integer Ints __attribute__((vector_size(bytes)));      \
    typedef word Words __attribute__((vector_size(bytes)));        \
    static constexpr int64_t kLanes = bytes / sizeof(real);        \
  };
LAVIT_VECTORS(float, int32_t, uint32_t, 16)
LAVIT_VECTORS(float, int32_t, uint32_t, 32)
LAVIT_VECTORS(float, int32_t, uint32_t, 64)
LAVIT_VECTORS(double, int64_t, uint64_t, 16)
LAVIT_VECTORS(double, int64_t, uint64_t, 32)
LAVIT_VECTORS(double, int64_t, uint64_t, 64)

// Bytes of the widest vectors that this machine has.
inline int64_t widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return 64;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
  return 16;
}

#if defined(__x86_64__)
#define LAVIT_AVX2 __attribute__((target("avx2,fma")))
#define LAVIT_AVX512 __attribute__((target("avx512f,fma")))
#endif

inline int64_t checked_width(int64_t width) {
  STD_TORCH_CHECK(width == 0 || width == 16 || width == 32 || width == 64, "width: expected 0, 16, 32 or 64");
  STD_TORCH_CHECK(width <= widest(), "width: this machine has no vectors of ", width, " bytes");
  return width == 0 ? widest() : width;
}

}  // namespace lavit::cpu
