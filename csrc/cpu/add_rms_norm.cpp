// add_rms_norm: the sum of two rows and its RMS norm in one pass. A row is read twice, from the first-level cache.
#include "vectors.h"

#include <cmath>
#include <optional>

namespace lavit::cpu {
namespace {

template <class Stored>
struct Norm {
  using Real = Sum<Stored>;
  const Stored *x, *delta, *weight;  // (rows, width), the same or null, (width,)
  Stored *sum, *normed;              // (rows, width)
  int64_t width;
  Real eps;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    using L = Lanes<Real, Bytes>;
    for (int64_t row = begin * width; row < end * width; row += width) {
      Stored* const s = sum + row;
      if (delta == nullptr) {
        std::memcpy(s, x + row, static_cast<size_t>(width) * sizeof(Stored));
      } else {
        for (int64_t i = 0; i < width; ++i) write(s[i], read(x[row + i]) + read(delta[row + i]));
      }
      typename L::Vector squares[4] = {};
      int64_t i = 0;
      for (; i + 4 * L::kLanes <= width; i += 4 * L::kLanes) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
          const typename L::Vector v = L::load(s + i + u * L::kLanes);
          squares[u] += v * v;
        }
      }
      Real total = L::total((squares[0] + squares[1]) + (squares[2] + squares[3]));
      for (; i < width; ++i) total += read(s[i]) * read(s[i]);
      const Real factor = Real(1) / std::sqrt(total / Real(width) + eps);
      for (i = 0; i < width; ++i) write(normed[row + i], read(s[i]) * factor * read(weight[i]));
    }
  }
};

}  // namespace

// x (N, C), delta (N, C) or none, weight (C,), of one dtype -> x + delta (N, C), and its norm (N, C).
std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, std::optional<Tensor> delta, const Tensor& weight,
                                        double eps) {
  check_rows("x", x, 2);
  check_rows("weight", weight, 1);
  const int64_t width = weight.size(0);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == width, "x: expected shape (N, ", width, ")");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weight: expected the dtype of x");
  if (delta) {
    check_rows("delta", *delta, 2);
    STD_TORCH_CHECK(delta->scalar_type() == x.scalar_type(), "delta: expected the dtype of x");
    STD_TORCH_CHECK(delta->dim() == 2 && delta->size(0) == x.size(0) && delta->size(1) == width,
                    "delta: expected the shape of x");
  }
  Tensor sum = torch::stable::new_empty(x, {x.size(0), width}), normed = torch::stable::new_empty(x, {x.size(0), width});
  if (width == 0) return {sum, normed};
  for_dtype("x", x, [&](auto stored) {
    using Stored = decltype(stored);
    const auto in = [](const Tensor& t) { return static_cast<const Stored*>(t.const_data_ptr()); };
    const Norm<Stored> body{in(x), delta ? in(*delta) : nullptr, in(weight), data<Stored>(sum), data<Stored>(normed),
                            width, static_cast<Sum<Stored>>(eps)};
    in_lanes(body, x.size(0), std::max<int64_t>(1, 100'000 / width));
  });
  return {sum, normed};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("add_rms_norm", TORCH_BOX(&lavit::cpu::add_rms_norm)); }
