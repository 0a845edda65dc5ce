// Rows of numbers as vectors of the compiler (GCC and clang): one text for SSE, AVX2, AVX-512 and NEON, chosen when it
// runs. Sums are in float for float and bfloat16, in double for double.
#pragma once

#include "../common.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#define LAVIT_LANES inline __attribute__((always_inline))  // so that it is compiled for its caller's instruction set

namespace lavit::cpu {

struct BFloat16 {
  uint16_t bits;
};

template <class Stored>
using Sum = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

LAVIT_LANES float read(const float& x) { return x; }
LAVIT_LANES double read(const double& x) { return x; }
LAVIT_LANES float read(const BFloat16& x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

LAVIT_LANES void write(float& to, float x) { to = x; }
LAVIT_LANES void write(double& to, double x) { to = x; }
LAVIT_LANES void write(BFloat16& to, float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>(x == x ? rounded : (bits >> 16) | 0x40);
}

template <class T, int Bytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(Bytes)));
};

template <class Real, int Bytes>
struct Lanes {
  using Vector = typename VectorOf<Real, Bytes>::Type;
  static constexpr int64_t kCount = Bytes / sizeof(Real);

  static LAVIT_LANES void load(Vector& to, const Real* from) { std::memcpy(&to, from, Bytes); }

  static LAVIT_LANES void load(Vector& to, const BFloat16* from) {
    using Words = typename VectorOf<uint32_t, Bytes>::Type;
    typename VectorOf<uint16_t, Bytes / 2>::Type half;
    std::memcpy(&half, from, Bytes / 2);
    const Words wide = __builtin_convertvector(half, Words) << 16;
    std::memcpy(&to, &wide, Bytes);
  }

  static LAVIT_LANES Real total(const Vector& x) {
    if constexpr (Bytes > 16) {
      using Half = Lanes<Real, Bytes / 2>;
      typename Half::Vector halves[2];
      std::memcpy(halves, &x, Bytes);
      return Half::total(halves[0] + halves[1]);
    } else {
      Real sum = x[0];
      for (int64_t i = 1; i < kCount; ++i) sum += x[i];
      return sum;
    }
  }

  // x . y over n elements, in two sums side by side.
  template <class Stored>
  static LAVIT_LANES Real dot(const Real* x, const Stored* y, int64_t n) {
    Vector sum[2] = {}, a, b;
    int64_t i = 0;
    for (; i + 2 * kCount <= n; i += 2 * kCount) {
      for (int64_t v = 0; v < 2; ++v) {
        load(a, x + i + v * kCount);
        load(b, y + i + v * kCount);
        sum[v] += a * b;
      }
    }
    for (; i + kCount <= n; i += kCount) {
      load(a, x + i);
      load(b, y + i);
      sum[0] += a * b;
    }
    Real all = total(sum[0] + sum[1]);
    for (; i < n; ++i) all += x[i] * read(y[i]);
    return all;
  }
};

// exp of n numbers <= 0, in place; returns their sum. In float by a polynomial, within 2 units of the last place; what
// would be subnormal is 0.
template <int Bytes>
LAVIT_LANES float exponentials(float* x, int64_t n) {
  using L = Lanes<float, Bytes>;
  using Ints = typename VectorOf<int32_t, Bytes>::Type;
  using Words = typename VectorOf<uint32_t, Bytes>::Type;
  typename L::Vector sum = {}, value;
  for (int64_t i = 0; i < n; i += L::kCount) {  // x has room for a whole vector at its end
    L::load(value, x + i);
    const Ints small = value < -87.0f;
    value = small ? typename L::Vector{} - 87.0f : value;
    const typename L::Vector shifted = value * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to whole numbers
    const typename L::Vector whole = shifted - 12582912.0f;
    const typename L::Vector r = (value - whole * 0.693359375f) + whole * 2.12194440e-4f;
    typename L::Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Words power = (reinterpret_cast<Words>(__builtin_convertvector(whole, Ints)) + 127) << 23;
    typename L::Vector scale;
    std::memcpy(&scale, &power, Bytes);
    value = p * scale;
    value = small ? typename L::Vector{} : value;
    std::memcpy(x + i, &value, Bytes);
    if (i + L::kCount <= n) {
      sum += value;
    } else {
      for (int64_t k = 0; k < n - i; ++k) sum[k] += value[k];
    }
  }
  return L::total(sum);
}

template <int Bytes>
LAVIT_LANES double exponentials(double* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i]);
  return sum;
}

template <class Body>
void with_16(const Body& body, int64_t begin, int64_t end) {
  body.template run<16>(begin, end);
}

#if defined(__x86_64__)
template <class Body>
__attribute__((target("avx2,fma"))) void with_32(const Body& body, int64_t begin, int64_t end) {
  body.template run<32>(begin, end);
}

template <class Body>
__attribute__((target("avx512f,avx512bw,avx512vl,fma"))) void with_64(const Body& body, int64_t begin, int64_t end) {
  body.template run<64>(begin, end);
}
#endif

// body.run<Bytes>(begin, end) over [0, n), on several threads where more than `grain` is to be done.
template <class Body>
void in_lanes(const Body& body, int64_t n, int64_t grain) {
  void (*part)(const Body&, int64_t, int64_t) = with_16<Body>;
#if defined(__x86_64__)
  static const bool wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  static const bool middle = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  part = wide ? with_64<Body> : middle ? with_32<Body> : part;
#endif
  if (n <= grain) return part(body, 0, n);
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { part(body, begin, end); });
}

// Calls go(Stored{}) for the dtype of x: float32, float64 or bfloat16.
template <class Go>
void for_dtype(const char* name, const Tensor& x, const Go& go) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return go(float{});
    case ScalarType::Double: return go(double{});
    case ScalarType::BFloat16: return go(BFloat16{});
    default: STD_TORCH_CHECK(false, name, ": expected float32, float64 or bfloat16");
  }
}

}  // namespace lavit::cpu
