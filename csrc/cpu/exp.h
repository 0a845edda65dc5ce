// The exponential function of all kernels: e^x = 2^n e^r with x = n log 2 + r, |r| <= log 2 / 2.
#pragma once

#include "vectors.h"

namespace lavit::cpu {

// shift: added to a small number it rounds it to a whole one, which is then in the low bits. high + low: log 2 in two
// parts, n times the first exact. least: below it, where e^x is about the least normal number, the result is 0.
template <class Real>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr float least = -87, shift = 0x1.8p23f, high = 0x1.63p-1f, low = -0x1.bd0106p-13f;
  static constexpr int bias = 127, bits = 23;
};
template <>
struct Exponent<double> {
  static constexpr double least = -708.396418532264, shift = 0x1.8p52;
  static constexpr double high = 0x1.62e42fee00000p-1, low = 0x1.a39ef35793c76p-33;
  static constexpr int bias = 1023, bits = 52;
};

// e^r, of vectors or numbers. float: (e^r - 1 - r) / r^2 by Chebyshev's polynomials, within 0.2 * 2^-24. double:
// Taylor's series.
template <class Real, class T>
LAVIT_INLINE void exp_near_zero(T& out, const T& r) {
  if constexpr (sizeof(Real) == 4) {
    T p = r * 1.393368817e-3f + 8.363205008e-3f;
    p = p * r + 4.1666463017e-2f;
    p = p * r + 1.6666576266e-1f;
    p = p * r + 0.5f;
    out = p * r * r + r + 1.0f;
  } else {
    constexpr double factorials[] = {1, 1, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                                     1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
    T sum = T{} + 1.0 / 6227020800;
#pragma GCC unroll 13
    for (int term = 12; term >= 0; --term) sum = sum * r + factorials[term];
    out = sum;
  }
}

// e^x for x up to 127 log 2 (float) or 1023 log 2 (double), within 2 units in the last place; 0 below Exponent::least;
// NaN of NaN.
template <class L>
LAVIT_INLINE void exponential(typename L::Vector& out, const typename L::Vector& x) {
  using E = Exponent<typename L::Real>;
  using Vector = typename L::Vector;
  using Words = typename L::Words;
  const Vector y = x < E::least ? L::all(E::least) : x;
  const Vector shifted = y * typename L::Real(0x1.71547652b82fep0) + E::shift, n = shifted - E::shift;
  const Vector r = (y - n * E::high) - n * E::low;
  Vector near;
  exp_near_zero<typename L::Real>(near, r);
  const Words power = (reinterpret_cast<Words>(shifted) + E::bias) << E::bits;
  out = x < E::least ? Vector{} : near * reinterpret_cast<Vector>(power);
}

}  // namespace lavit::cpu
