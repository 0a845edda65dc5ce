// varlen_attention, backward: the weights computed again from the stored log-sum-exp, one head of one image at a time.
//
// With g the gradient of the output, u_ij = exp(s_ij - lse_i), p_ij = w_j u_ij, d_ij = g_i . v_j - g_i . out_i:
//   dv_j = sum_i p_ij g_i;  ds_ij = scale p_ij d_ij;  dq_i = sum_j ds_ij k_j;  dk_j = sum_i ds_ij q_i;
//   dw_j = sum over heads and i of u_ij d_ij.
// Five products of n m D multiply-adds (causal: half). A head's dk and dv are summed up block by block of queries.
#include "varlen_attention.h"

namespace lavit::cpu {
namespace {

struct Backward {
  Attention a;
  Layout grad, out;
  const void* lse;     // (Tq, H)
  Result dq, dk, dv;
  void* dw;            // (H, Tk): each head's part, or null
  int64_t total_k;
};

template <class Real>
struct HeadBackward {
  Matrix<const Real> q, k, v, grad, out;
  int64_t n, m, dim, columns;
  const Real *log_weight, *lse;  // lse `heads` apart
  int64_t heads;
  bool causal;
  Real scale;
  Matrix<Real> dq, dk, dv;
  // Scratch: queries and gradients with the queries in the lanes; weights and gradients of the logits, keys x queries;
  // of every key's weight the gradient's parts in the lanes.
  Real *turned_q, *turned_grad, *p, *ds, *dw;

  // How many keys count for queries first .. first + rows - 1.
  int64_t keys(int64_t first, int64_t rows) const { return causal ? std::min(m, first + rows) : m; }
};

template <class L, int V>
struct Block {
  const typename L::Vector *q, *grad;
  typename L::Vector lse[V], delta[V];
  typename L::Ints place[V];
};

// Of Rows keys from `first` on: q . k and g . v, in the places of p and ds. Kept in registers until they are used, they
// would be too many.
template <class L, int Rows, int V>
LAVIT_INLINE void both_products(const HeadBackward<typename L::Real>& h, const Block<L, V>& b, int64_t first) {
  using Vector = typename L::Vector;
  Vector sums[Rows][V];
  const auto store = [&](typename L::Real* to) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) reinterpret_cast<Vector*>(to)[(first + r) * 2 + v] = sums[r][v];
    }
  };
  products<L, Rows, V>(h.k, first, b.q, h.dim, sums);
  store(h.p);
  products<L, Rows, V>(h.v, first, b.grad, h.dim, sums);
  store(h.ds);
}

// p, ds and, with weights, dw of key j from its products.
template <class L, int V>
LAVIT_INLINE void weigh(const HeadBackward<typename L::Real>& h, const Block<L, V>& b, int64_t j, bool causal) {
  using Real = typename L::Real;
  using Vector = typename L::Vector;
  constexpr Real kLargest = Real(64 * 0.693147180559945309417);
  Vector *p = reinterpret_cast<Vector*>(h.p) + j * 2, *ds = reinterpret_cast<Vector*>(h.ds) + j * 2;
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const Vector exponent = p[v] - b.lse[v], difference = ds[v] - b.delta[v];
    const Vector weighted = h.log_weight == nullptr ? exponent : exponent + h.log_weight[j];
    Vector weight;
    exponential<L>(weight, weighted > Vector{} ? Vector{} : weighted);  // at most 1, but for rounding
    Vector gradient = weight * difference * h.scale;
    const auto future = b.place[v] < static_cast<typename L::Int>(j);
    if (causal) {
      weight = future ? Vector{} : weight;
      gradient = future ? Vector{} : gradient;
    }
    p[v] = weight;
    ds[v] = gradient;
    if (h.log_weight != nullptr) {
      Vector u;
      exponential<L>(u, exponent > kLargest ? L::all(kLargest) : exponent);
      u *= difference;
      if (causal) u = future ? Vector{} : u;
      reinterpret_cast<Vector*>(h.dw)[j] += u;
    }
  }
}

// Weights and gradients of the logits of queries first .. first + V * lanes - 1, two vectors a key.
template <class L, int V>
LAVIT_INLINE void backward_block(const HeadBackward<typename L::Real>& h, int64_t first) {
  using Real = typename L::Real;
  using Vector = typename L::Vector;
  constexpr int64_t kWidth = V * L::kLanes;
  const int64_t rows = std::min(kWidth, h.n - first), keys = h.keys(first, rows);
  transpose<Real>({h.q.row(first), h.q.step}, rows, h.dim, h.scale, h.turned_q, kWidth);
  transpose<Real>({h.grad.row(first), h.grad.step}, rows, h.dim, Real(1), h.turned_grad, kWidth);

  Block<L, V> b;
  b.q = reinterpret_cast<const Vector*>(h.turned_q);
  b.grad = reinterpret_cast<const Vector*>(h.turned_grad);
  for (int v = 0; v < V; ++v) {
    b.place[v] = L::counted_from(first + v * L::kLanes);
    for (int i = 0; i < L::kLanes; ++i) {
      const int64_t at = v * L::kLanes + i;
      b.lse[v][i] = at < rows ? h.lse[(first + at) * h.heads] : std::numeric_limits<Real>::infinity();
      Real delta = 0;
      if (at < rows) {
        const Real *g = h.grad.row(first + at), *o = h.out.row(first + at);
        for (int64_t d = 0; d < h.dim; ++d) delta += g[d] * o[d];
      }
      b.delta[v][i] = delta;
    }
  }
  constexpr int kRows = kRowsOf<L>;
  int64_t j = 0;
  for (; j + kRows <= keys; j += kRows) both_products<L, kRows, V>(h, b, j);
  if (kRows == 8 && j + 4 <= keys) {
    both_products<L, 4, V>(h, b, j);
    j += 4;
  }
  for (; j < keys; ++j) both_products<L, 1, V>(h, b, j);
  for (j = 0; j < keys; ++j) weigh<L, V>(h, b, j, h.causal && j > first);
}

// What the block of queries adds to the gradients; the two products of one kind are one text, compiled once.
template <class L>
LAVIT_INLINE void multiply_block(const HeadBackward<typename L::Real>& h, int64_t first, const typename L::Real* ones) {
  using Real = typename L::Real;
  constexpr int64_t kWidth = 2 * L::kLanes;
  const int64_t rows = std::min(kWidth, h.n - first), keys = h.keys(first, rows);
  const Seen up_to = h.causal ? Seen::kUpTo : Seen::kAll, from = h.causal ? Seen::kFrom : Seen::kAll;
  multiply<L, false>(h.ds, 1, kWidth, h.k, {h.dq.row(first), h.dq.step}, rows, keys, h.columns, ones, up_to, first);
  for (const bool values : {false, true}) {
    const Matrix<const Real> other = values ? h.grad : h.q;
    multiply<L, true>(values ? h.p : h.ds, kWidth, 1, {other.row(first), other.step}, values ? h.dv : h.dk, keys, rows,
                      h.columns, nullptr, from, first);
  }
}

template <class Real>
struct BackwardBody {
  const Backward& f;
  const Heads& heads;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    using L = Lanes<Real, Bytes>;
    const Attention& a = f.a;
    const Sizes<L> sizes(a, heads);
    const int64_t columns = sizes.columns;
    Room room(4 * Room::bytes_of<Real>(sizes.q) + 4 * Room::bytes_of<Real>(sizes.k) +
              3 * Room::bytes_of<Real>(sizes.weights) + 2 * Room::bytes_of<Real>(sizes.turned));
    Real *q = room.take<Real>(sizes.q), *grad = room.take<Real>(sizes.q), *out = room.take<Real>(sizes.q);
    Real *k = room.take<Real>(sizes.k), *v = room.take<Real>(sizes.k);
    Real *dq = room.take<Real>(sizes.q), *dk = room.take<Real>(sizes.k), *dv = room.take<Real>(sizes.k);
    HeadBackward<Real> h{};
    h.p = room.take<Real>(sizes.weights);
    h.ds = room.take<Real>(sizes.weights);
    h.dw = room.take<Real>(sizes.weights);
    h.turned_q = room.take<Real>(sizes.turned);
    h.turned_grad = room.take<Real>(sizes.turned);
    h.dim = a.dim;
    h.columns = columns;
    h.causal = a.causal;
    h.scale = static_cast<Real>(a.scale);
    h.heads = a.heads;
    alignas(64) Real ones[2 * L::kLanes];
    std::fill(ones, ones + 2 * L::kLanes, Real(1));

    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t image = heads.image(pair), head = heads.head(pair);
      const int64_t q0 = a.cu_q[image], k0 = a.cu_k[image];
      h.n = a.cu_q[image + 1] - q0;
      h.m = a.cu_k[image + 1] - k0;
      Real* weight_gradient = f.dw == nullptr ? nullptr : static_cast<Real*>(f.dw) + head * f.total_k + k0;
      if (h.n == 0 || h.m == 0) {
        f.dq.clear(q0, q0 + h.n, head);
        f.dk.clear(k0, k0 + h.m, head);
        f.dv.clear(k0, k0 + h.m, head);
        if (weight_gradient != nullptr) std::fill(weight_gradient, weight_gradient + h.m, Real(0));
        continue;
      }
      h.q = rows_of<Real>(a.q, head, q0, h.n, a.dim, columns, q);
      h.grad = rows_of<Real>(f.grad, head, q0, h.n, a.dim, columns, grad);
      h.out = rows_of<Real>(f.out, head, q0, h.n, a.dim, columns, out);
      h.k = rows_of<Real>(a.k, head, k0, h.m, a.dim, columns, k);
      h.v = rows_of<Real>(a.v, head, k0, h.m, a.dim, columns, v);
      h.lse = static_cast<const Real*>(f.lse) + q0 * a.heads + head;
      h.log_weight = a.log_weight == nullptr ? nullptr : static_cast<const Real*>(a.log_weight) + k0;
      h.dq = f.dq.rows<Real>(head, q0, columns, dq);
      h.dk = f.dk.rows<Real>(head, k0, columns, dk);
      h.dv = f.dv.rows<Real>(head, k0, columns, dv);
      for (int64_t j = 0; j < h.m; ++j) {
        std::fill(h.dk.row(j), h.dk.row(j) + columns, Real(0));
        std::fill(h.dv.row(j), h.dv.row(j) + columns, Real(0));
      }
      if (weight_gradient != nullptr) std::fill(h.dw, h.dw + h.m * L::kLanes, Real(0));
      for (int64_t i = 0; i < h.n; i += 2 * L::kLanes) {
        h.n - i > L::kLanes ? backward_block<L, 2>(h, i) : backward_block<L, 1>(h, i);
        multiply_block<L>(h, i, ones);
      }
      f.dq.store(head, q0, h.n, h.dq, dq);
      f.dk.store(head, k0, h.m, h.dk, dk);
      f.dv.store(head, k0, h.m, h.dv, dv);
      if (weight_gradient == nullptr) continue;
      for (int64_t j = 0; j < h.m; ++j) {
        Real sum = 0;
        for (int i = 0; i < L::kLanes; ++i) sum += h.dw[j * L::kLanes + i];
        weight_gradient[j] = sum;
      }
    }
  }
};

// Sums over the heads, in their order; 0 beyond `end`.
template <class Real>
void add_heads(const void* parts, int64_t heads, int64_t total, int64_t end, void* sums) {
  const auto* from = static_cast<const Real*>(parts);
  auto* to = static_cast<Real*>(sums);
  std::fill(to, to + total, Real(0));
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t j = 0; j < end; ++j) to[j] += from[h * total + j];
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> varlen_attention_backward(
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const Tensor& cu_q, const Tensor& cu_k, const std::optional<Tensor>& key_weight, bool causal, double scale,
    int64_t width) {
  Attention a = checked(q, k, v, cu_q, cu_k, key_weight, causal, scale);
  width = checked_width(width);
  const ScalarType type = q.scalar_type();
  const bool wide = type == ScalarType::Double;
  check_rows("lse", lse, 2);
  STD_TORCH_CHECK(lse.dim() == 2 && lse.size(0) == q.size(0) && lse.size(1) == a.heads &&
                      lse.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
                  "lse: expected (", q.size(0), ", ", a.heads, ") of the dtype that is computed in");
  const int64_t total_q = q.size(0), total_k = k.size(0);
  Tensor dq = torch::stable::new_empty(q, {total_q, a.heads, a.dim});
  Tensor dk = torch::stable::new_empty(q, {total_k, a.heads, a.dim});
  Tensor dv = torch::stable::new_empty(q, {total_k, a.heads, a.dim});
  Tensor dw = torch::stable::new_empty(lse, {key_weight.has_value() ? total_k : 0});
  std::optional<Tensor> log_weight, parts;
  Backward b{a, layout_of("grad", grad, q, total_q), layout_of("out", out, q, total_q), lse.const_data_ptr(),
             {dq.mutable_data_ptr(), type, a.heads, a.dim}, {dk.mutable_data_ptr(), type, a.heads, a.dim},
             {dv.mutable_data_ptr(), type, a.heads, a.dim}, nullptr, total_k};
  if (key_weight.has_value()) {
    log_weight = logarithms(*key_weight);
    parts = torch::stable::new_empty(lse, {a.heads, total_k});
    b.a.log_weight = log_weight->const_data_ptr();
    b.dw = parts->mutable_data_ptr();
  }
  const int64_t end_q = a.cu_q[a.images], end_k = a.cu_k[a.images];
  b.dq.clear(end_q, total_q);
  b.dk.clear(end_k, total_k);
  b.dv.clear(end_k, total_k);
  run<BackwardBody>(b, Heads(a), wide, width);
  if (key_weight.has_value()) {
    (wide ? add_heads<double> : add_heads<float>)(b.dw, a.heads, total_k, end_k, dw.mutable_data_ptr());
  }
  return {dq, dk, dv, dw};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("varlen_attention_backward", TORCH_BOX(&lavit::cpu::varlen_attention_backward));
}
