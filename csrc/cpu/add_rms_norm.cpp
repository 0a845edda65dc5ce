// add_rms_norm: the sum of two rows and its RMS norm in one pass, and the gradient in another. A row is read twice, the
// second time from the first-level cache.
#include "vectors.h"

#include <cmath>
#include <optional>

namespace lavit::cpu {
namespace {

constexpr int64_t kRows = 64;  // their parts of the weight's gradient are summed first, so that threads change no bit

inline int64_t rows_of_a_thread(int64_t width) { return std::max<int64_t>(1, 16384 / width); }

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

// With r the inverse root and y = s r: ds = grad_sum + r (w g - y mean(w g y)), dw = sum over rows of g y. r is found
// again with the mean, in the same pass: the row has to be read for that anyway.
template <class Stored>
struct NormGradient {
  using Real = Sum<Stored>;
  const Stored *grad_sum, *grad_normed, *sum, *weight;  // (rows, width) or null, (rows, width) twice, (width,)
  Stored* ds;                                           // (rows, width)
  Real* parts;                                          // (blocks of kRows, width), zeros
  int64_t rows, width;
  Real eps;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min(rows, (block + 1) * kRows);
      for (int64_t row = block * kRows; row < last; ++row) one<Bytes>(row * width, parts + block * width);
    }
  }

  template <int Bytes>
  LAVIT_INLINE void one(int64_t row, Real* __restrict part) const {
    using L = Lanes<Real, Bytes>;
    using Vector = typename L::Vector;
    const Stored *__restrict s = sum + row, *__restrict g = grad_normed + row, *__restrict w = weight;
    Stored* __restrict to = ds + row;
    Vector squares[2] = {}, dots[2] = {};
    int64_t i = 0;
    for (; i + 2 * L::kLanes <= width; i += 2 * L::kLanes) {
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        const int64_t at = i + u * L::kLanes;
        const Vector v = L::load(s + at);
        squares[u] += v * v;
        dots[u] += L::load(w + at) * L::load(g + at) * v;
      }
    }
    Real square = L::total(squares[0] + squares[1]), dot = L::total(dots[0] + dots[1]);
    for (; i < width; ++i) {
      square += read(s[i]) * read(s[i]);
      dot += read(w[i]) * read(g[i]) * read(s[i]);
    }
    const Real r = Real(1) / std::sqrt(square / Real(width) + eps);
    const Real mean = dot * r * r / Real(width);  // of w g y, times r
    if (grad_sum == nullptr) {
      for (i = 0; i < width; ++i) {
        const Real y = read(s[i]);
        part[i] += read(g[i]) * (y * r);
        write(to[i], (read(w[i]) * read(g[i]) - y * mean) * r);
      }
      return;
    }
    const Stored* __restrict more = grad_sum + row;
    for (i = 0; i < width; ++i) {
      const Real y = read(s[i]);
      part[i] += read(g[i]) * (y * r);
      write(to[i], read(more[i]) + (read(w[i]) * read(g[i]) - y * mean) * r);
    }
  }
};

template <class Stored>
const Stored* input(const Tensor& t) {
  return static_cast<const Stored*>(t.const_data_ptr());
}

void check_like(const char* name, const Tensor& t, const Tensor& x) {
  check_rows(name, t, 2);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == x.size(1), name, ": expected the shape of x");
}

void check_arguments(const Tensor& x, const Tensor& weight) {
  check_rows("x", x, 2);
  check_rows("weight", weight, 1);
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 1 && x.size(1) == weight.size(0), "x, weight: expected (N, C), (C,)");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weight: expected the dtype of x");
}

}  // namespace

// x (N, C), delta (N, C) or none, weight (C,), of one dtype -> x + delta (N, C), and its norm (N, C).
std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, std::optional<Tensor> delta, const Tensor& weight, double eps,
                                        int64_t vector_bytes) {
  check_arguments(x, weight);
  if (delta) check_like("delta", *delta, x);
  const int64_t width = weight.size(0), bytes = checked_width(vector_bytes);
  Tensor sum = torch::stable::new_empty(x, {x.size(0), width});
  Tensor normed = torch::stable::new_empty(x, {x.size(0), width});
  if (width == 0) return {sum, normed};
  for_dtype("x", x, [&](auto stored) {
    using Stored = decltype(stored);
    const Norm<Stored> body{input<Stored>(x), delta ? input<Stored>(*delta) : nullptr, input<Stored>(weight),
                            data<Stored>(sum), data<Stored>(normed), width, static_cast<Sum<Stored>>(eps)};
    in_lanes(body, x.size(0), rows_of_a_thread(width), bytes);
  });
  return {sum, normed};
}

// Gradients of both results, of the sum's possibly none, and the sum (N, C) itself -> those of x and delta, and weight.
std::tuple<Tensor, Tensor> add_rms_norm_backward(std::optional<Tensor> grad_sum, const Tensor& grad_normed,
                                                 const Tensor& sum, const Tensor& weight, double eps,
                                                 int64_t vector_bytes) {
  check_arguments(sum, weight);
  check_like("grad_normed", grad_normed, sum);
  if (grad_sum) check_like("grad_sum", *grad_sum, sum);
  const int64_t rows = sum.size(0), width = weight.size(0), bytes = checked_width(vector_bytes);
  Tensor ds = torch::stable::new_empty(sum, {rows, width}), dw = torch::stable::new_empty(sum, {width});
  if (width == 0) return {ds, dw};
  for_dtype("x", sum, [&](auto stored) {
    using Stored = decltype(stored);
    using Real = Sum<Stored>;
    const int64_t blocks = (rows + kRows - 1) / kRows;
    std::vector<Real> parts(static_cast<size_t>(std::max<int64_t>(1, blocks) * width), Real(0));
    const NormGradient<Stored> body{grad_sum ? input<Stored>(*grad_sum) : nullptr, input<Stored>(grad_normed),
                                    input<Stored>(sum), input<Stored>(weight), data<Stored>(ds), parts.data(), rows,
                                    width, static_cast<Real>(eps)};
    in_lanes(body, blocks, std::max<int64_t>(1, rows_of_a_thread(width) / kRows), bytes);
    for (int64_t b = 1; b < blocks; ++b) {
      for (int64_t i = 0; i < width; ++i) parts[static_cast<size_t>(i)] += parts[static_cast<size_t>(b * width + i)];
    }
    Stored* to = data<Stored>(dw);
    for (int64_t i = 0; i < width; ++i) write(to[i], parts[static_cast<size_t>(i)]);
  });
  return {ds, dw};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&lavit::cpu::add_rms_norm));
  m.impl("add_rms_norm_backward", TORCH_BOX(&lavit::cpu::add_rms_norm_backward));
}
