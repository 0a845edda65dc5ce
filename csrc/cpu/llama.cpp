// What a LLaMA layer does between its products, each in one pass forward and one backward: the norm by the root of the
// mean square, the rotation of queries and keys by their positions, and the gate of the MLP.
//
// Memory is the limit: 1024 rows of 128 columns are half a megabyte in float32, which the second-level cache holds.
#include "exp.h"

#include <cmath>

namespace lavit::cpu {
namespace {

constexpr int64_t kRows = 64;  // whose part of a weight's gradient is summed up first, whatever the number of threads
constexpr int kSums = 8;       // side by side, so that the compiler may keep them in vectors

void check_real(const char* name, const Tensor& t, const Tensor& like) {
  check_rows(name, t, 1);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  ": expected float32 or float64");
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected the dtype of x");
}

template <class Real>
const Real* input(const Tensor& t) {
  return static_cast<const Real*>(t.const_data_ptr());
}

// sum of f(i) for i < n, in an order that is always the same.
template <class Real, class F>
inline Real sum_of(int64_t n, const F& f) {
  Real sums[kSums] = {}, total = 0;
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int s = 0; s < kSums; ++s) sums[s] += f(i + s);
  }
  for (int s = 0; s < kSums; ++s) total += sums[s];
  for (; i < n; ++i) total += f(i);
  return total;
}

template <class Real>
void norm_rows(const Tensor& x_, const Tensor& weight_, double eps, Tensor& out_, Tensor& inverse_) {
  const int64_t rows = x_.size(0), width = x_.size(1);
  const Real *x = input<Real>(x_), *weight = input<Real>(weight_);
  Real *out = data<Real>(out_), *inverse = data<Real>(inverse_);
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)),
                              [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Real* __restrict row = x + i * width;
      Real* __restrict to = out + i * width;
      const Real square = sum_of<Real>(width, [&](int64_t c) { return row[c] * row[c]; });
      const Real r = 1 / std::sqrt(square / static_cast<Real>(width) + static_cast<Real>(eps));
      inverse[i] = r;
      for (int64_t c = 0; c < width; ++c) to[c] = weight[c] * (row[c] * r);
    }
  });
}

// With y = x r, r the inverse: dx = r (w g - y mean(w g y)), dw = sum over rows of g y.
template <class Real>
void norm_rows_backward(const Tensor& grad_, const Tensor& x_, const Tensor& weight_, const Tensor& inverse_,
                        Tensor& dx_, Tensor& dw_) {
  const int64_t rows = x_.size(0), width = x_.size(1), blocks = (rows + kRows - 1) / kRows;
  const Real *grad = input<Real>(grad_), *x = input<Real>(x_), *weight = input<Real>(weight_);
  const Real* inverse = input<Real>(inverse_);
  Real *dx = data<Real>(dx_), *dw = data<Real>(dw_);
  std::vector<Real> parts(static_cast<size_t>(blocks * width), Real(0));
  torch::stable::parallel_for(0, blocks, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, kRows * width)),
                              [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kRows; i < std::min(rows, end * kRows); ++i) {
      const Real *__restrict row = x + i * width, *__restrict g = grad + i * width;
      Real *__restrict to = dx + i * width, *__restrict part = parts.data() + i / kRows * width;
      const Real r = inverse[i];
      const Real dot = sum_of<Real>(width, [&](int64_t c) { return weight[c] * g[c] * row[c]; });
      const Real mean = dot * r * r * r / static_cast<Real>(width);
      for (int64_t c = 0; c < width; ++c) {
        to[c] = weight[c] * g[c] * r - row[c] * mean;
        part[c] += g[c] * (row[c] * r);
      }
    }
  });
  std::fill(dw, dw + width, Real(0));
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t c = 0; c < width; ++c) dw[c] += parts[static_cast<size_t>(b * width + c)];
  }
}

template <class Real>
void rotate_rows(const Tensor& x_, const Tensor& cos_, const Tensor& sin_, bool back, Tensor& out_) {
  const int64_t rows = x_.size(0), heads = x_.size(1), half = x_.size(2) / 2, step = x_.stride(0);
  const Real* x = input<Real>(x_);
  Real* out = data<Real>(out_);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, 2 * half * heads));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Real *__restrict c = input<Real>(cos_) + i * 2 * half, *__restrict s = input<Real>(sin_) + i * 2 * half;
      for (int64_t h = 0; h < heads; ++h) {
        const Real* __restrict from = x + i * step + h * 2 * half;
        Real* __restrict to = out + (i * heads + h) * 2 * half;
        if (back) {
          for (int64_t d = 0; d < half; ++d) {
            to[d] = from[d] * c[d] + from[half + d] * s[half + d];
            to[half + d] = from[half + d] * c[half + d] - from[d] * s[d];
          }
        } else {
          for (int64_t d = 0; d < half; ++d) {
            to[d] = from[d] * c[d] - from[half + d] * s[d];
            to[half + d] = from[half + d] * c[half + d] + from[d] * s[half + d];
          }
        }
      }
    }
  });
}

// silu(g) u with s = 1 / (1 + e^-g), silu(g) = g s; backward: dg = grad u s (1 + g (1 - s)), du = grad g s.
struct Gate {
  const float *grad, *g, *u;  // without grad: forward
  float *out, *dg, *du;

  template <int Bytes>
  void run(int64_t begin, int64_t end) const;
};

template <class L>
LAVIT_INLINE void gate_lanes(const Gate& p, int64_t i) {
  using Vector = typename L::Vector;
  const Vector g = L::load(p.g + i), u = L::load(p.u + i);
  Vector e;
  exponential<L>(e, -g > 44.0f ? L::all(44.0f) : -g);
  const Vector s = 1.0f / (1.0f + e);
  if (p.grad == nullptr) {
    L::store(p.out + i, g * s * u);
    return;
  }
  const Vector grad = L::load(p.grad + i);
  L::store(p.dg + i, grad * u * s * (1.0f + g * (1.0f - s)));
  L::store(p.du + i, grad * g * s);
}

template <int Bytes>
LAVIT_INLINE void Gate::run(int64_t begin, int64_t end) const {
  using L = Lanes<float, Bytes>;
  const Gate& p = *this;
  int64_t i = begin;
  for (; i + L::kLanes <= end; i += L::kLanes) gate_lanes<L>(p, i);
  if (i == end) return;
  float in[3][L::kLanes] = {}, out[3][L::kLanes];
  const size_t bytes = static_cast<size_t>(end - i) * sizeof(float);
  std::memcpy(in[0], p.g + i, bytes);
  std::memcpy(in[1], p.u + i, bytes);
  if (p.grad != nullptr) std::memcpy(in[2], p.grad + i, bytes);
  gate_lanes<L>({p.grad == nullptr ? nullptr : in[2], in[0], in[1], out[0], out[1], out[2]}, 0);
  if (p.grad == nullptr) {
    std::memcpy(p.out + i, out[0], bytes);
  } else {
    std::memcpy(p.dg + i, out[1], bytes);
    std::memcpy(p.du + i, out[2], bytes);
  }
}

void gate_all(const Gate& p, int64_t count, int64_t width) {
  const auto run = compiled_for<Gate, int64_t, int64_t>(width);
  // In whole lines, so that the lanes of an element do not depend on the threads.
  torch::stable::parallel_for(0, (count + 15) / 16, 1024, [&](int64_t begin, int64_t end) {
    run(p, begin * 16, std::min(count, end * 16));
  });
}

const float* gate_input(const char* name, const Tensor& t, const Tensor& like) {
  check_rows(name, t, 0);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.numel() == like.numel(), name,
                  ": expected float32 like gate");
  return static_cast<const float*>(t.const_data_ptr());
}

}  // namespace

// gate, up: contiguous float32 of one shape -> silu(gate) * up.
Tensor silu_gate(const Tensor& gate, const Tensor& up, int64_t width) {
  width = checked_width(width);
  const float *g = gate_input("gate", gate, gate), *u = gate_input("up", up, gate);
  Tensor out = torch::stable::empty_like(gate);
  gate_all({nullptr, g, u, data<float>(out), nullptr, nullptr}, gate.numel(), width);
  return out;
}

std::tuple<Tensor, Tensor> silu_gate_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, int64_t width) {
  width = checked_width(width);
  const float *g = gate_input("gate", gate, gate), *u = gate_input("up", up, gate);
  const float* from = gate_input("grad", grad, gate);
  Tensor dg = torch::stable::empty_like(gate), du = torch::stable::empty_like(gate);
  gate_all({from, g, u, nullptr, data<float>(dg), data<float>(du)}, gate.numel(), width);
  return {dg, du};
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_real("x", x, x);
  check_real("weight", weight, x);
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 1 && weight.size(0) == x.size(1), "x, weight: expected (T, C), (C,)");
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor inverse = torch::stable::new_empty(x, {x.size(0)});
  (x.scalar_type() == ScalarType::Float ? norm_rows<float> : norm_rows<double>)(x, weight, eps, out, inverse);
  return {out, inverse};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& inverse) {
  check_real("x", x, x);
  check_real("grad", grad, x);
  check_real("weight", weight, x);
  check_real("inverse", inverse, x);
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 1 && weight.size(0) == x.size(1), "x, weight: expected (T, C), (C,)");
  STD_TORCH_CHECK(grad.dim() == 2 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1), "grad: expected (T, C)");
  STD_TORCH_CHECK(inverse.dim() == 1 && inverse.size(0) == x.size(0), "inverse: expected (T,)");
  Tensor dx = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor dw = torch::stable::new_empty(x, {x.size(1)});
  const auto run = x.scalar_type() == ScalarType::Float ? norm_rows_backward<float> : norm_rows_backward<double>;
  run(grad, x, weight, inverse, dx, dw);
  return {dx, dw};
}

// x (T, H, D), rows any number of elements apart; cos, sin (T, D). back: the gradient of the rotation.
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool back) {
  check_real("cos", cos, x);
  check_real("sin", sin, x);
  STD_TORCH_CHECK(x.dim() == 3 && x.size(2) % 2 == 0, "x: expected (T, H, D), D even");
  STD_TORCH_CHECK(x.numel() == 0 || (x.stride(2) == 1 && (x.size(1) == 1 || x.stride(1) == x.size(2))),
                  "x: expected contiguous rows");
  for (const Tensor& t : {cos, sin}) {
    STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == x.size(2), "cos, sin: expected (T, D)");
  }
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2)});
  (x.scalar_type() == ScalarType::Float ? rotate_rows<float> : rotate_rows<double>)(x, cos, sin, back, out);
  return out;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&lavit::cpu::rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&lavit::cpu::rms_norm_backward));
  m.impl("silu_gate", TORCH_BOX(&lavit::cpu::silu_gate));
  m.impl("silu_gate_backward", TORCH_BOX(&lavit::cpu::silu_gate_backward));
  m.impl("rotate", TORCH_BOX(&lavit::cpu::rotate));
}
