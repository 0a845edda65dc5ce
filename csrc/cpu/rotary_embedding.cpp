// rotary_embedding: queries or keys rotated by their positions, in one pass. The gradient is another such pass.
#include "vectors.h"

namespace lavit::cpu {
namespace {

// A head's halves a, b, with c, s of the first half of cos, sin and c', s' of the second: (a c - b s, b c' + a s').
// back, the transposed: (a c + b s', b c' - a s).
template <class Real>
struct Rotation {
  const Real *x, *cos, *sin;  // (rows, heads, 2 half) with rows `step` apart, (rows, 2 half) twice
  Real* out;                  // (rows, heads, 2 half)
  int64_t heads, half, step;
  bool back;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t width = 2 * half;
    const Real sign = back ? Real(-1) : Real(1);
    for (int64_t i = begin; i < end; ++i) {
      const Real *__restrict c = cos + i * width, *__restrict s = sin + i * width + (back ? half : 0);
      const Real* __restrict t = sin + i * width + (back ? 0 : half);
      for (int64_t h = 0; h < heads; ++h) {
        const Real* __restrict from = x + i * step + h * width;
        Real* __restrict to = out + (i * heads + h) * width;
        for (int64_t d = 0; d < half; ++d) {
          const Real a = from[d], b = from[half + d];
          to[d] = a * c[d] - sign * s[d] * b;
          to[half + d] = b * c[half + d] + sign * t[d] * a;
        }
      }
    }
  }
};

}  // namespace

// x (T, H, D), rows any number of elements apart; cos, sin (T, D). back: the gradient of the rotation.
Tensor rotary_embedding(const Tensor& x, const Tensor& cos, const Tensor& sin, bool back, int64_t vector_bytes) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(2) % 2 == 0, "x: expected (T, H, D), D even");
  STD_TORCH_CHECK(x.numel() == 0 || (x.stride(2) == 1 && (x.size(1) == 1 || x.stride(1) == x.size(2))),
                  "x: expected contiguous rows");
  for (const Tensor& t : {cos, sin}) {
    check_rows("cos, sin", t, 2);
    STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == x.size(2), "cos, sin: expected (T, D)");
    STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "cos, sin: expected the dtype of x");
  }
  const int64_t rows = x.size(0), heads = x.size(1), width = x.size(2), bytes = checked_width(vector_bytes);
  Tensor out = torch::stable::new_empty(x, {rows, heads, width});
  const auto go = [&](auto number) {
    using Real = decltype(number);
    const auto in = [](const Tensor& t) { return static_cast<const Real*>(t.const_data_ptr()); };
    const Rotation<Real> body{in(x), in(cos), in(sin), data<Real>(out), heads, width / 2, x.stride(0), back};
    in_lanes(body, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width * heads)), bytes);
  };
  if (x.scalar_type() == ScalarType::Float) {
    go(float{});
  } else {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "x: expected float32 or float64");
    go(double{});
  }
  return out;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("rotary_embedding", TORCH_BOX(&lavit::cpu::rotary_embedding)); }
