// decode_attention: one new token of each of N sequences: rotated, written to the cache, and attending to it.
//
// A task is a sequence and a key-value head. It rotates its key and writes it and the value to the slot, rotates the
// queries that share them, and goes twice over the slots that the mask shows: scores, then the weighted sum of values.
// Other slots are not read, whatever they hold. A slot's key and value are read once for each query: 2 D numbers for
// 4 D operations, so at 16 rows, 4 heads, 100 slots and D = 32 it is 0.8e6 multiply-adds over 1.6 MB: 20 us.
#include "exp.h"

namespace lavit::cpu {
namespace {

// x . y over n elements, in two sums side by side.
template <class L, class Stored>
LAVIT_INLINE typename L::Real dot(const typename L::Real* x, const Stored* y, int64_t n) {
  typename L::Vector sum[2] = {};
  int64_t i = 0;
  for (; i + 2 * L::kLanes <= n; i += 2 * L::kLanes) {
    for (int64_t v = 0; v < 2; ++v) sum[v] += L::load(x + i + v * L::kLanes) * L::load(y + i + v * L::kLanes);
  }
  for (; i + L::kLanes <= n; i += L::kLanes) sum[0] += L::load(x + i) * L::load(y + i);
  typename L::Real all = L::total(sum[0] + sum[1]);
  for (; i < n; ++i) all += x[i] * read(y[i]);
  return all;
}

// exp of n numbers <= 0, in place; returns their sum. x has room for a whole vector at its end.
template <class L>
LAVIT_INLINE typename L::Real exponentials(typename L::Real* x, int64_t n) {
  typename L::Vector sum = {}, value;
  for (int64_t i = 0; i < n; i += L::kLanes) {
    exponential<L>(value, L::load(x + i));
    L::store(x + i, value);
    if (i + L::kLanes <= n) {
      sum += value;
    } else {
      for (int64_t k = 0; k < n - i; ++k) sum[k] += value[k];
    }
  }
  return L::total(sum);
}

template <class Stored>
struct Decode {
  using Real = Sum<Stored>;
  const Stored* qkv;             // (rows, (groups + 2) * heads, dim)
  Stored *keys, *values;         // (rows, heads, length, dim)
  const Stored *mask, *cos, *sin;  // (rows, length), (rows, dim), (rows, dim)
  Stored* out;                   // (rows, heads, groups, dim)
  int64_t heads, groups, dim, length, slot, window;
  Real scale;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t half = dim / 2;
    std::vector<Real> query(dim), score(window + Bytes / sizeof(Real));
    std::vector<int64_t> seen(window);
    int64_t count = 0, counted = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / heads, head = task % heads;
      if (row != counted) {
        counted = row;
        count = 0;
        const Stored* open = mask + row * length;
        for (int64_t j = 0; j < window; ++j) {
          seen[count] = j;
          count += read(open[j]) == Real(0);
        }
      }
      const Stored *c = cos + row * dim, *s = sin + row * dim;
      const Stored* of_row = qkv + row * (groups + 2) * heads * dim;
      const auto rotated = [&](const Stored* x, int64_t d) {
        return read(x[d]) * read(c[d]) + read(x[d < half ? d + half : d - half]) * read(s[d]);
      };
      Stored* const own_keys = keys + task * length * dim;
      Stored* const own_values = values + task * length * dim;
      const Stored* k = of_row + (groups * heads + head) * dim;
      for (int64_t d = 0; d < dim; ++d) write(own_keys[slot * dim + d], rotated(k, d));
      std::memcpy(own_values + slot * dim, k + heads * dim, static_cast<size_t>(dim) * sizeof(Stored));
      for (int64_t g = 0; g < groups; ++g) {
        const Stored* q = of_row + (head * groups + g) * dim;
        for (int64_t d = 0; d < dim; ++d) query[d] = rotated(q, d) * scale;
        attend<Bytes>(query.data(), own_keys, own_values, seen.data(), count, score.data(),
                      out + ((row * heads + head) * groups + g) * dim);
      }
    }
  }

  template <int Bytes>
  LAVIT_INLINE void attend(const Real* query, const Stored* k, const Stored* v, const int64_t* seen, int64_t count,
                          Real* score, Stored* to) const {
    using L = Lanes<Real, Bytes>;
    for (int64_t i = 0; i < count; ++i) score[i] = dot<L>(query, k + seen[i] * dim, dim);
    Real most = count ? score[0] : Real(0);
    for (int64_t i = 1; i < count; ++i) most = score[i] > most ? score[i] : most;
    for (int64_t i = 0; i < count; ++i) score[i] -= most;
    const Real share = Real(1) / exponentials<L>(score, count);
    int64_t d = 0;
    for (; d + 4 * L::kLanes <= dim; d += 4 * L::kLanes) weighted<Bytes, 4>(v + d, seen, count, score, share, to + d);
    for (; d + 2 * L::kLanes <= dim; d += 2 * L::kLanes) weighted<Bytes, 2>(v + d, seen, count, score, share, to + d);
    for (; d + L::kLanes <= dim; d += L::kLanes) weighted<Bytes, 1>(v + d, seen, count, score, share, to + d);
    for (; d < dim; ++d) {
      Real sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += score[i] * read(v[seen[i] * dim + d]);
      write(to[d], sum * share);
    }
  }

  template <int Bytes, int Count>
  LAVIT_INLINE void weighted(const Stored* v, const int64_t* seen, int64_t count, const Real* score, Real share,
                            Stored* to) const {
    using L = Lanes<Real, Bytes>;
    typename L::Vector sum[Count] = {};
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int u = 0; u < Count; ++u) sum[u] += L::load(v + seen[i] * dim + u * L::kLanes) * score[i];
    }
    for (int u = 0; u < Count; ++u) {
      for (int64_t lane = 0; lane < L::kLanes; ++lane) write(to[u * L::kLanes + lane], sum[u][lane] * share);
    }
  }
};

void check_like(const char* name, const Tensor& x, const Tensor& like, std::vector<int64_t> shape) {
  check_rows(name, x, static_cast<int64_t>(shape.size()));
  STD_TORCH_CHECK(x.scalar_type() == like.scalar_type(), name, ": expected the dtype of qkv");
  STD_TORCH_CHECK(x.dim() == static_cast<int64_t>(shape.size()), name, ": expected ", shape.size(), " dimensions");
  for (size_t i = 0; i < shape.size(); ++i) {
    STD_TORCH_CHECK(x.size(i) == shape[i], name, ": expected ", shape[i], " in dimension ", i, ", got ", x.size(i));
  }
}

}  // namespace

// qkv (N, (Hq + 2 Hk) * D), keys and values (N, Hk, L, D), mask (N, 1, 1, L), cos and sin (N, 1, D), slot (1,) int64.
Tensor decode_attention(const Tensor& qkv, Tensor keys, Tensor values, const Tensor& mask, const Tensor& cos,
                        const Tensor& sin, const Tensor& slot, int64_t window, double scale) {
  check_rows("qkv", qkv, 2);
  check_rows("keys", keys, 4);
  const int64_t rows = qkv.size(0), heads = keys.size(1), length = keys.size(2), dim = keys.size(3);
  STD_TORCH_CHECK(dim >= 2 && dim % 2 == 0, "keys: expected an even head dimension, got ", dim);
  const int64_t all = qkv.size(1) / dim, groups = heads ? all / heads - 2 : 0;
  STD_TORCH_CHECK(groups >= 1 && qkv.size(1) == (groups + 2) * heads * dim,
                  "qkv: expected queries in equal groups and ", 2 * heads * dim, " numbers of keys and values, got ",
                  qkv.size(1), " in all");
  check_like("keys", keys, qkv, {rows, heads, length, dim});
  check_like("values", values, qkv, {rows, heads, length, dim});
  check_like("mask", mask, qkv, {rows, 1, 1, length});
  check_like("cos", cos, qkv, {rows, 1, dim});
  check_like("sin", sin, qkv, {rows, 1, dim});
  STD_TORCH_CHECK(slot.scalar_type() == ScalarType::Long && slot.numel() == 1, "slot: expected one int64");
  const int64_t at = *static_cast<const int64_t*>(slot.const_data_ptr());
  STD_TORCH_CHECK(0 <= at && at < window && window <= length, "slot: expected 0 <= slot < window <= ", length, ", got ",
                  at, " and ", window);
  Tensor out = torch::stable::new_empty(qkv, {rows, groups * heads * dim});
  for_dtype("qkv", qkv, [&](auto stored) {
    using Stored = decltype(stored);
    const auto in = [](const Tensor& x) { return static_cast<const Stored*>(x.const_data_ptr()); };
    const Decode<Stored> body{in(qkv), data<Stored>(keys), data<Stored>(values), in(mask), in(cos), in(sin),
                                 data<Stored>(out), heads, groups, dim, length, at, window,
                                 static_cast<Sum<Stored>>(scale)};
    in_lanes(body, rows * heads, std::max<int64_t>(1, 100'000 / (2 * groups * window * dim)));
  });
  return out;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("decode_attention", TORCH_BOX(&lavit::cpu::decode_attention)); }
