// Numbers as they are stored, read and written in the precision that is computed in: float for bfloat16 and float,
// double for double.
#pragma once

#include "../common.h"

#include <type_traits>

namespace lavit::cpu {

struct BFloat16 {
  uint16_t bits;
};

template <class Stored>
using Sum = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

LAVIT_INLINE float read(const float& x) { return x; }
LAVIT_INLINE double read(const double& x) { return x; }
LAVIT_INLINE float read(const BFloat16& x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

LAVIT_INLINE void write(float& to, float x) { to = x; }
LAVIT_INLINE void write(double& to, double x) { to = x; }
LAVIT_INLINE void write(BFloat16& to, float x) {  // to the nearest, ties to even; NaN is torch's
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
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
