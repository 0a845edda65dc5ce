// varlen_attention, forward: one head of one image at a time, blocks of queries in the lanes against all its keys.
//
// For n queries and m keys of D columns: 2 n m D multiply-adds and n m exponentials, which are about 20 operations each
// (causal: half). At the small language model's n = m = 60, D = 32 a head's keys and values are 15 KB and a block's
// weights 4 to 8 KB: all of it stays in the first-level cache, so the limit is the arithmetic.
#include "varlen_attention.h"

namespace lavit::cpu {
namespace {

struct Forward {
  Attention a;
  Result out;
  void* lse;  // (Tq, H) of the type computed in
};

// Logits of Rows keys from `first` on and the queries in the lanes, into `scores`; their maximum in `most`.
template <class L, int Rows, int V>
LAVIT_INLINE void score(Matrix<const typename L::Real> k, int64_t first, const typename L::Vector* q, int64_t dim,
                        const typename L::Real* log_weight, const typename L::Ints (&place)[V], bool causal,
                        typename L::Vector* scores, typename L::Vector (&most)[V]) {
  typename L::Vector s[Rows][V];
  products<L, Rows, V>(k, first, q, dim, s);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (log_weight != nullptr) s[r][v] += log_weight[first + r];
      if (causal) {
        const auto future = place[v] < static_cast<typename L::Int>(first + r);
        s[r][v] = future ? L::all(-std::numeric_limits<typename L::Real>::infinity()) : s[r][v];
      }
      most[v] = s[r][v] > most[v] ? s[r][v] : most[v];
      scores[(first + r) * 2 + v] = s[r][v];
    }
  }
}

template <class Real>
struct HeadForward {
  Matrix<const Real> q, k, v;
  int64_t n, m, dim;
  const Real *log_weight;
  bool causal;
  Real scale;
  Matrix<Real> out;
  Real* lse;         // `heads` apart
  int64_t heads;
  Real *turned, *scores;  // scratch

  // How many keys count for queries first .. first + rows - 1.
  int64_t keys(int64_t first, int64_t rows) const { return causal ? std::min(m, first + rows) : m; }
};

// The weights of queries first .. first + V * lanes - 1, two vectors a key, and what their sums are to be divided by.
template <class L, int V>
LAVIT_INLINE void forward_block(const HeadForward<typename L::Real>& h, int64_t first, typename L::Real* inverse) {
  using Real = typename L::Real;
  using Vector = typename L::Vector;
  constexpr int64_t kWidth = V * L::kLanes;
  const Real kInfinity = std::numeric_limits<Real>::infinity();
  const int64_t rows = std::min(kWidth, h.n - first), keys = h.keys(first, rows);
  transpose<Real>({h.q.row(first), h.q.step}, rows, h.dim, h.scale, h.turned, kWidth);
  const auto* q = reinterpret_cast<const Vector*>(h.turned);
  auto* scores = reinterpret_cast<Vector*>(h.scores);

  Vector most[V], total[V];
  typename L::Ints place[V];
  for (int v = 0; v < V; ++v) {
    most[v] = L::all(-kInfinity);
    total[v] = Vector{};
    place[v] = L::counted_from(first + v * L::kLanes);
  }
  constexpr int kRows = kRowsOf<L>;
  int64_t j = 0;
  for (; j + kRows <= keys; j += kRows) {
    score<L, kRows, V>(h.k, j, q, h.dim, h.log_weight, place, h.causal && j + kRows > first, scores, most);
  }
  if (kRows == 8 && j + 4 <= keys) {
    score<L, 4, V>(h.k, j, q, h.dim, h.log_weight, place, h.causal, scores, most);
    j += 4;
  }
  for (; j < keys; ++j) score<L, 1, V>(h.k, j, q, h.dim, h.log_weight, place, h.causal, scores, most);

  for (int v = 0; v < V; ++v) most[v] = most[v] == -kInfinity ? Vector{} : most[v];  // no key counts
  for (int64_t i = 0; i < keys; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      exponential<L>(scores[i * 2 + v], scores[i * 2 + v] - most[v]);
      total[v] += scores[i * 2 + v];
    }
  }

  for (int v = 0; v < V; ++v) {
    for (int i = 0; i < L::kLanes; ++i) {
      const int64_t at = v * L::kLanes + i;
      const Real z = total[v][i];
      inverse[at] = z == 0 ? Real(0) : 1 / z;
      if (at < rows) h.lse[(first + at) * h.heads] = z == 0 ? kInfinity : most[v][i] + std::log(z);
    }
  }
}

template <class Real>
struct ForwardBody {
  const Forward& f;
  const Heads& heads;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    using L = Lanes<Real, Bytes>;
    const Attention& a = f.a;
    const Sizes<L> sizes(a, heads);
    const int64_t columns = sizes.columns;
    Room room(2 * Room::bytes_of<Real>(sizes.q) + 2 * Room::bytes_of<Real>(sizes.k) +
              Room::bytes_of<Real>(sizes.weights) + Room::bytes_of<Real>(sizes.turned));
    Real *q = room.take<Real>(sizes.q), *out = room.take<Real>(sizes.q);
    Real *k = room.take<Real>(sizes.k), *v = room.take<Real>(sizes.k);
    HeadForward<Real> h{};
    h.scores = room.take<Real>(sizes.weights);
    h.turned = room.take<Real>(sizes.turned);
    h.dim = a.dim;
    h.causal = a.causal;
    h.scale = static_cast<Real>(a.scale);
    h.heads = a.heads;

    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t image = heads.image(pair), head = heads.head(pair);
      const int64_t q0 = a.cu_q[image], k0 = a.cu_k[image];
      h.n = a.cu_q[image + 1] - q0;
      h.m = a.cu_k[image + 1] - k0;
      if (h.n == 0) continue;
      h.lse = static_cast<Real*>(f.lse) + q0 * a.heads + head;
      if (h.m == 0) {
        f.out.clear(q0, q0 + h.n, head);
        for (int64_t i = 0; i < h.n; ++i) h.lse[i * a.heads] = std::numeric_limits<Real>::infinity();
        continue;
      }
      h.q = rows_of<Real>(a.q, head, q0, h.n, a.dim, columns, q);
      h.k = rows_of<Real>(a.k, head, k0, h.m, a.dim, columns, k);
      h.v = rows_of<Real>(a.v, head, k0, h.m, a.dim, columns, v);
      h.log_weight = a.log_weight == nullptr ? nullptr : static_cast<const Real*>(a.log_weight) + k0;
      h.out = f.out.rows<Real>(head, q0, columns, out);
      alignas(64) Real inverse[2 * L::kLanes];
      for (int64_t i = 0; i < h.n; i += 2 * L::kLanes) {
        const int64_t rows = std::min(2 * L::kLanes, h.n - i);
        rows > L::kLanes ? forward_block<L, 2>(h, i, inverse) : forward_block<L, 1>(h, i, inverse);
        multiply<L, false>(h.scores, 1, 2 * L::kLanes, h.v, {h.out.row(i), h.out.step}, rows, h.keys(i, rows), columns,
                           inverse, h.causal ? Seen::kUpTo : Seen::kAll, i);
      }
      f.out.store(head, q0, h.n, h.out, out);
    }
  }
};

}  // namespace

std::tuple<Tensor, Tensor> varlen_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q,
                                            const Tensor& cu_k, const std::optional<Tensor>& key_weight, bool causal,
                                            double scale, int64_t width) {
  Attention a = checked(q, k, v, cu_q, cu_k, key_weight, causal, scale);
  width = checked_width(width);
  const bool wide = q.scalar_type() == ScalarType::Double;
  Tensor out = torch::stable::new_empty(q, {q.size(0), a.heads, a.dim});
  Tensor lse = torch::stable::new_empty(q, {q.size(0), a.heads}, wide ? ScalarType::Double : ScalarType::Float);
  std::optional<Tensor> log_weight;
  if (key_weight.has_value()) {
    log_weight = logarithms(*key_weight);
    a.log_weight = log_weight->const_data_ptr();
  }
  const Forward f{a, {out.mutable_data_ptr(), q.scalar_type(), a.heads, a.dim}, lse.mutable_data_ptr()};
  const int64_t end = a.cu_q[a.images];
  f.out.clear(end, q.size(0));
  const auto endless = [&](auto zero) {
    auto* from = static_cast<decltype(zero)*>(f.lse);
    std::fill(from + end * a.heads, from + q.size(0) * a.heads, std::numeric_limits<decltype(zero)>::infinity());
  };
  wide ? endless(0.0) : endless(0.0f);
  const Heads heads(a);
  run<ForwardBody>(f, heads, wide, width);
  return {out, lse};
}

// The arguments of both operators.

Layout layout_of(const char* name, const Tensor& x, const Tensor& like, int64_t rows) {
  STD_TORCH_CHECK(x.dim() == 3, name, ": expected (T, H, D), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, ": expected the dtype of q");
  STD_TORCH_CHECK(x.size(0) == rows && x.size(1) == like.size(1) && x.size(2) == like.size(2), name, ": expected (",
                  rows, ", ", like.size(1), ", ", like.size(2), ")");
  return {x.const_data_ptr(), x.scalar_type(), x.stride(0), x.stride(1), x.stride(2)};
}

namespace {

const int32_t* offsets(const char* name, const Tensor& cu, const Tensor& like, int64_t total) {
  check_indices(name, cu, 1, like);
  STD_TORCH_CHECK(cu.size(0) >= 1, name, ": expected at least one offset");
  const auto* at = static_cast<const int32_t*>(cu.const_data_ptr());
  STD_TORCH_CHECK(at[0] == 0, name, ": expected offsets from 0, got ", at[0]);
  for (int64_t b = 1; b < cu.size(0); ++b) {
    STD_TORCH_CHECK(at[b] >= at[b - 1] && at[b] <= total, name, ": expected non-decreasing offsets of at most ", total,
                    ", got ", at[b]);
  }
  return at;
}

}  // namespace

Attention checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                  const std::optional<Tensor>& key_weight, bool causal, double scale) {
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3, "q, k: expected (T, H, D)");
  const ScalarType type = q.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  "q: expected float32, float64, bfloat16 or float16");
  Attention a{};
  a.q = layout_of("q", q, q, q.size(0));
  a.k = layout_of("k", k, q, k.size(0));
  a.v = layout_of("v", v, q, k.size(0));
  a.cu_q = offsets("cu_q", cu_q, q, q.size(0));
  a.cu_k = offsets("cu_k", cu_k, q, k.size(0));
  STD_TORCH_CHECK(cu_q.size(0) == cu_k.size(0), "cu_k: expected ", cu_q.size(0), " offsets, got ", cu_k.size(0));
  a.images = cu_q.size(0) - 1;
  a.heads = q.size(1);
  a.dim = q.size(2);
  a.causal = causal;
  a.scale = scale;
  STD_TORCH_CHECK(!causal || std::equal(a.cu_q, a.cu_q + a.images + 1, a.cu_k), "cu_k: expected cu_q, causal");
  if (key_weight.has_value()) {
    check_rows("key_weight", *key_weight, 1);
    STD_TORCH_CHECK(key_weight->dim() == 1 && key_weight->size(0) == k.size(0), "key_weight: expected ", k.size(0));
    const ScalarType wanted = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(key_weight->scalar_type() == wanted, "key_weight: expected the dtype that is computed in");
  }
  return a;
}

Tensor logarithms(const Tensor& key_weight) {
  Tensor result = torch::stable::new_empty(key_weight, {key_weight.size(0)});
  const auto go = [&](auto zero) {
    using Real = decltype(zero);
    const auto* from = static_cast<const Real*>(key_weight.const_data_ptr());
    auto* to = static_cast<Real*>(result.mutable_data_ptr());
    for (int64_t j = 0; j < key_weight.size(0); ++j) to[j] = std::log(from[j]);
  };
  key_weight.scalar_type() == ScalarType::Double ? go(0.0) : go(0.0f);
  return result;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("varlen_attention", TORCH_BOX(&lavit::cpu::varlen_attention)); }
