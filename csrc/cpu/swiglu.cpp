// swiglu: the gate of LLaMA's MLP, in one pass forward and one backward. Memory is the limit, and three transfers of a
// number; the exponential takes some ten operations.
#include "exp.h"

namespace lavit::cpu {
namespace {

// silu(g) u with s = 1 / (1 + e^-g), silu(g) = g s; backward: dg = grad u s (1 + g (1 - s)), du = grad g s.
struct SwiGLU {
  const float *grad, *g, *u;  // without grad: forward
  float *out, *dg, *du;

  template <int Bytes>
  void run(int64_t begin, int64_t end) const;
};

template <class L>
LAVIT_INLINE void lanes(const SwiGLU& p, int64_t i) {
  using Vector = typename L::Vector;
  const Vector g = L::load(p.g + i), u = L::load(p.u + i);
  Vector e;
  exponential<L>(e, -g > 87.0f ? L::all(87.0f) : -g);
  const Vector sigmoid = 1.0f / (1.0f + e);
  const Vector s = sigmoid < 1.7e-38f ? Vector{} : sigmoid;  // at g = -87 float32 ends
  if (p.grad == nullptr) {
    L::store(p.out + i, g * s * u);
    return;
  }
  const Vector grad = L::load(p.grad + i);
  L::store(p.dg + i, grad * u * s * (1.0f + g * (1.0f - s)));
  L::store(p.du + i, grad * g * s);
}

template <int Bytes>
LAVIT_INLINE void SwiGLU::run(int64_t begin, int64_t end) const {
  using L = Lanes<float, Bytes>;
  const SwiGLU& p = *this;
  int64_t i = begin;
  for (; i + L::kLanes <= end; i += L::kLanes) lanes<L>(p, i);
  if (i == end) return;
  float in[3][L::kLanes] = {}, out[3][L::kLanes];
  const size_t bytes = static_cast<size_t>(end - i) * sizeof(float);
  std::memcpy(in[0], p.g + i, bytes);
  std::memcpy(in[1], p.u + i, bytes);
  if (p.grad != nullptr) std::memcpy(in[2], p.grad + i, bytes);
  lanes<L>({p.grad == nullptr ? nullptr : in[2], in[0], in[1], out[0], out[1], out[2]}, 0);
  if (p.grad == nullptr) {
    std::memcpy(p.out + i, out[0], bytes);
  } else {
    std::memcpy(p.dg + i, out[1], bytes);
    std::memcpy(p.du + i, out[2], bytes);
  }
}

void over_all(const SwiGLU& p, int64_t count, int64_t width) {
  const auto run = compiled_for<SwiGLU, int64_t, int64_t>(width);
  // In whole lines, so that the lanes of an element do not depend on the threads.
  torch::stable::parallel_for(0, (count + 15) / 16, 1024, [&](int64_t begin, int64_t end) {
    run(p, begin * 16, std::min(count, end * 16));
  });
}

const float* input(const char* name, const Tensor& t, const Tensor& like) {
  check_rows(name, t, 0);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.numel() == like.numel(), name,
                  ": expected float32 like gate");
  return static_cast<const float*>(t.const_data_ptr());
}

}  // namespace

// gate, up: contiguous float32 of one shape -> silu(gate) * up.
Tensor swiglu(const Tensor& gate, const Tensor& up, int64_t width) {
  width = checked_width(width);
  const float *g = input("gate", gate, gate), *u = input("up", up, gate);
  Tensor out = torch::stable::empty_like(gate);
  over_all({nullptr, g, u, data<float>(out), nullptr, nullptr}, gate.numel(), width);
  return out;
}

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, int64_t width) {
  width = checked_width(width);
  const float *g = input("gate", gate, gate), *u = input("up", up, gate);
  const float* from = input("grad", grad, gate);
  Tensor dg = torch::stable::empty_like(gate), du = torch::stable::empty_like(gate);
  over_all({from, g, u, nullptr, data<float>(dg), data<float>(du)}, gate.numel(), width);
  return {dg, du};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("swiglu", TORCH_BOX(&lavit::cpu::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&lavit::cpu::swiglu_backward));
}
