// policy_attention between its products: the scores of some heads become weights, or gradients, row by row in place.
//
// The products are torch's; a head's N x N scores (256 KB for N = 256) come from the cache and go back to it. A row's
// maximum, exponentials, sum and quotient are four passes over N numbers in the first-level cache, about 30 operations
// a score: an eighth of the products' at D = 88. Symbols as in kernels/policy_attention/reference.py.
#include "exp.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lavit::cpu {
namespace {

constexpr int64_t kRows = 64;  // of a head for one thread; sums over rows are those of such blocks, on any machine

template <class Real>
struct Policy {
  Real *s, *da;       // (heads, n, n); da in the backward alone
  const Real* keep;   // (n,)
  Real *lse, *leak;   // (heads, n)
  Real* dkeep;        // (heads, blocks, n), in the backward alone
  int64_t heads, n, blocks;
  bool cross;
  double eps, scale;
};

template <class Real, int Bytes>
struct Row {
  using L = Lanes<Real, Bytes>;
  using Reals = typename L::Vector;
  static constexpr int64_t kLanes = L::kLanes;

  // The numbers from x + j on, of which there are n, and `fill` beyond.
  static LAVIT_INLINE void load(Reals& out, const Real* x, int64_t j, int64_t n, Real fill) {
    if (__builtin_expect(j + kLanes <= n, 1)) {
      std::memcpy(&out, x + j, Bytes);
    } else {
      out = Reals{} + fill;
      std::memcpy(&out, x + j, static_cast<size_t>(n - j) * sizeof(Real));
    }
  }

  static LAVIT_INLINE void store(Real* x, int64_t j, int64_t n, const Reals& value) {
    const int64_t count = std::min(kLanes, n - j);
    if (__builtin_expect(count == kLanes, 1)) {
      std::memcpy(x + j, &value, Bytes);
    } else {
      std::memcpy(x + j, &value, static_cast<size_t>(count) * sizeof(Real));
    }
  }

  // max_j s_j; NaN where it is not finite, or a score is none: the formula gives NaN for the whole row there.
  static LAVIT_INLINE Real maximum(const Real* s, int64_t n) {
    Reals most = Reals{} - std::numeric_limits<Real>::infinity(), bad{};
    for (int64_t j = 0; j < n; j += kLanes) {
      Reals x;
      load(x, s, j, n, -std::numeric_limits<Real>::infinity());
      bad = x == x ? bad : x;
      most = x > most ? x : most;
    }
    Real lanes[kLanes], poison[kLanes];
    std::memcpy(lanes, &most, Bytes);
    std::memcpy(poison, &bad, Bytes);
    Real m = lanes[0], none = poison[0];
    for (int64_t i = 1; i < kLanes; ++i) {
      m = std::max(m, lanes[i]);
      none += poison[i];
    }
    return none == none && std::isfinite(m) ? m : std::numeric_limits<Real>::quiet_NaN();
  }
};

// P of the rows of a block, one after the other, with zeros up to a whole vector; its columns from `seen` on are zero.
template <class Real>
struct Mask {
  const Policy<Real>& p;
  std::vector<Real> row;
  int64_t seen;

  Mask(const Policy<Real>& p, int64_t first) : p(p), row(p.n + 16, Real(0)), seen(p.cross ? p.n : first + 1) {
    for (int64_t j = 0; j < p.n; ++j) row[j] = p.cross ? 1 - p.keep[j] : (j < first ? p.keep[j] : Real(j == first));
  }

  void next() {
    if (p.cross || seen == p.n) return;
    row[seen - 1] = p.keep[seen - 1];
    row[seen++] = 1;
  }
};

// s -> a, and lse and leak.
template <class Real, int Bytes>
LAVIT_INLINE void weigh(const Policy<Real>& p, int64_t head, int64_t first, int64_t last) {
  using R = Row<Real, Bytes>;
  using Reals = typename R::Reals;
  const int64_t n = p.n;
  Mask<Real> mask(p, first);
  for (int64_t i = first; i < last; ++i, mask.next()) {
    Real* s = p.s + (head * n + i) * n;
    const Real m = R::maximum(s, n);
    Reals total{};
    for (int64_t j = 0; j < mask.seen; j += R::kLanes) {
      Reals x, policy;
      R::load(x, s, j, n, 0);
      std::memcpy(&policy, mask.row.data() + j, Bytes);
      exponential<typename R::L>(x, x - m);
      x *= policy;
      total += x;
      R::store(s, j, n, x);
    }
    const Real den = R::L::total(total) + static_cast<Real>(p.eps), leak = static_cast<Real>(p.eps) / den;
    const Real inverse = 1 / den, rest = leak / static_cast<Real>(n);
    int64_t j = 0;
    for (; j < mask.seen; j += R::kLanes) {
      Reals x;
      R::load(x, s, j, n, 0);
      R::store(s, j, n, x * inverse + rest);
    }
    for (; j < n; ++j) s[j] = rest;
    p.lse[head * n + i] = m + std::log(den);
    p.leak[head * n + i] = leak;
  }
}

// s -> a, da -> scale ds, and the block's sums of dP over its rows.
template <class Real, int Bytes>
LAVIT_INLINE void differentiate(const Policy<Real>& p, int64_t head, int64_t first, int64_t last) {
  using R = Row<Real, Bytes>;
  using Reals = typename R::Reals;
  const int64_t n = p.n;
  const Real scale = static_cast<Real>(p.scale);
  Mask<Real> mask(p, first);
  std::vector<Real> sums(n + 16, Real(0)), beyond(16);
  for (int64_t i = first; i < last; ++i, mask.next()) {
    Real *s = p.s + (head * n + i) * n, *da = p.da + (head * n + i) * n;
    const Real lse = p.lse[head * n + i], rest = p.leak[head * n + i] / static_cast<Real>(n);
    const Real m = R::maximum(s, n);
    const int64_t argmax = std::min<int64_t>(std::find(s, s + n, m) - s, n - 1);
    // u in place of s, and sum_j a_j da_j
    Reals dots{};
    int64_t j = 0;
    for (; j < mask.seen; j += R::kLanes) {
      Reals u, policy, g;
      R::load(u, s, j, n, 0);
      R::load(g, da, j, n, 0);
      std::memcpy(&policy, mask.row.data() + j, Bytes);
      exponential<typename R::L>(u, u - lse);
      R::store(s, j, n, u);
      dots += (u * policy + rest) * g;
    }
    Real dot = R::L::total(dots), tail = 0;
    for (int64_t c = j; c < n; ++c) tail += da[c];
    dot += rest * tail;
    // a in place of u, ds in place of da
    Reals totals{};
    if (!p.cross) std::copy(sums.begin() + i, sums.begin() + std::min(j, n), beyond.begin());
    for (j = 0; j < mask.seen; j += R::kLanes) {
      Reals u, g, policy, sum;
      R::load(u, s, j, n, 0);
      R::load(g, da, j, n, 0);
      std::memcpy(&policy, mask.row.data() + j, Bytes);
      std::memcpy(&sum, sums.data() + j, Bytes);
      const Reals dp = u * (g - dot), w = u * policy, ds = dp * policy;
      sum += dp;
      std::memcpy(sums.data() + j, &sum, Bytes);
      R::store(s, j, n, w + rest);
      R::store(da, j, n, ds * scale);
      totals += ds;
    }
    if (!p.cross) std::copy(beyond.begin(), beyond.begin() + (std::min(j, n) - i), sums.begin() + i);
    for (int64_t c = j; c < n; ++c) {
      s[c] = rest;
      da[c] = 0;
    }
    da[argmax] -= R::L::total(totals) * scale;
  }
  Real* to = p.dkeep + (head * p.blocks + first / kRows) * n;
  for (int64_t j = 0; j < n; ++j) to[j] = p.cross ? -sums[j] : sums[j];
}

// Rows first .. last - 1 of a head.
template <class Real, bool backward>
struct Block {
  const Policy<Real>& p;

  template <int Bytes>
  LAVIT_INLINE void run(int64_t head, int64_t first, int64_t last) const {
    if constexpr (backward) {
      differentiate<Real, Bytes>(p, head, first, last);
    } else {
      weigh<Real, Bytes>(p, head, first, last);
    }
  }
};

template <class Real, bool backward>
void run(const Policy<Real>& p, int64_t width) {
  const Block<Real, backward> body{p};
  const auto rows = compiled_for<Block<Real, backward>, int64_t, int64_t, int64_t>(width);
  const int64_t grain = std::max<int64_t>(1, 16384 / (kRows * p.n));
  torch::stable::parallel_for(0, p.heads * p.blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % p.blocks * kRows;
      rows(body, block / p.blocks, first, std::min(p.n, first + kRows));
    }
  });
}

void check_matrices(const char* name, const Tensor& t, const Tensor& s) {
  STD_TORCH_CHECK(t.dim() == 3 && t.is_contiguous() && t.size(1) == t.size(2), name, ": expected contiguous (H, N, N)");
  STD_TORCH_CHECK(t.scalar_type() == s.scalar_type() && t.numel() == s.numel(), name, ": expected dtype and shape of s");
}

void check_row(const char* name, const Tensor& t, const Tensor& s, int64_t numbers) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == s.scalar_type() && t.numel() == numbers, name, ": expected ",
                  numbers, " contiguous numbers of the dtype of s");
}

template <bool backward>
void policy_rows(const Tensor& s, const Tensor* da, const Tensor& keep, const Tensor& lse, const Tensor& leak,
                 const Tensor* dkeep, bool cross, double eps, double scale, int64_t width) {
  STD_TORCH_CHECK(s.scalar_type() == ScalarType::Float || s.scalar_type() == ScalarType::Double,
                  "s: expected float32 or float64");
  check_matrices("s", s, s);
  const int64_t heads = s.size(0), n = s.size(1), blocks = (n + kRows - 1) / kRows;
  check_row("keep", keep, s, n);
  check_row("lse", lse, s, heads * n);
  check_row("leak", leak, s, heads * n);
  if (da != nullptr) check_matrices("da", *da, s);
  width = checked_width(width);
  if (s.numel() == 0) return;
  const auto go = [&](auto zero) {
    using Real = decltype(zero);
    const auto at = [](const Tensor* t) { return t == nullptr ? nullptr : data<Real>(*t); };
    run<Real, backward>({data<Real>(s), at(da), static_cast<const Real*>(keep.const_data_ptr()), data<Real>(lse),
                         data<Real>(leak), at(dkeep), heads, n, blocks, cross, eps, scale},
                        width);
  };
  s.scalar_type() == ScalarType::Float ? go(0.0f) : go(0.0);
}

// s (H, N, N), some heads of one image, keep (N,) -> their weights in place of s, lse and leak (H, N).
void policy_weights(Tensor s, const Tensor& keep, Tensor lse, Tensor leak, bool cross, double eps, int64_t width) {
  policy_rows<false>(s, nullptr, keep, lse, leak, nullptr, cross, eps, 1, width);
}

// s and da (H, N, N) -> weights in place of s, scale ds in place of da; and sums of dkeep (H, blocks of rows, N).
Tensor policy_gradients(Tensor s, Tensor da, const Tensor& keep, const Tensor& lse, const Tensor& leak, bool cross,
                        double scale, int64_t width) {
  check_matrices("s", s, s);
  Tensor dkeep = torch::stable::new_empty(s, {s.size(0), (s.size(1) + kRows - 1) / kRows, s.size(1)});
  policy_rows<true>(s, &da, keep, lse, leak, &dkeep, cross, 0, scale, width);
  return dkeep;
}

}  // namespace
}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("policy_weights", TORCH_BOX(&lavit::cpu::policy_weights));
  m.impl("policy_gradients", TORCH_BOX(&lavit::cpu::policy_gradients));
}
