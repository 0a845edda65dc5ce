// varlen_attention: what its forward and backward share: inputs of any layout, vectors, the two kinds of product.
//
// The logits of a block of queries are computed with the queries in the lanes: a key's element is broadcast, so that
// the maximum, the exponential and the sum of a query's keys need nothing of other lanes, and a lane's operations do
// not depend on what is beside it. Products with the weights have the columns of a head in the lanes.
#pragma once

#include "exp.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>

namespace lavit::cpu {

// A tensor (T, H, D); strides in elements.
struct Layout {
  const void* data;
  ScalarType type;
  int64_t row, head, column;
};

struct Attention {
  Layout q, k, v;
  const int32_t *cu_q, *cu_k;
  int64_t images, heads, dim;
  const void* log_weight;  // (Tk,) of the type computed in, or null
  bool causal;
  double scale;
};

// Rows of one head, each of contiguous columns; `step` apart.
template <class Real>
struct Matrix {
  Real* data;
  int64_t step;
  LAVIT_INLINE Real* row(int64_t i) const { return data + i * step; }
};

template <class Real, class Stored>
void copy_columns(const Stored* from, int64_t row, int64_t column, int64_t rows, int64_t dim, Matrix<Real> to,
               int64_t padded) {
  for (int64_t i = 0; i < rows; ++i) {
    Real* target = to.row(i);
    if (column == 1) {
      for (int64_t d = 0; d < dim; ++d) target[d] = static_cast<Real>(from[i * row + d]);
    } else {
      for (int64_t d = 0; d < dim; ++d) target[d] = static_cast<Real>(from[i * row + d * column]);
    }
    for (int64_t d = dim; d < padded; ++d) target[d] = Real(0);
  }
}

// Rows first .. first + rows - 1 of a head, padded with zeros to `padded` columns: where they are if they can be read
// there, else in `room`.
template <class Real>
Matrix<const Real> rows_of(const Layout& x, int64_t head, int64_t first, int64_t rows, int64_t dim, int64_t padded,
                           Real* room) {
  const int64_t start = first * x.row + head * x.head;
  const auto copied = [&](auto stored) {
    using Stored = decltype(stored);
    copy_columns<Real>(static_cast<const Stored*>(x.data) + start, x.row, x.column, rows, dim, {room, padded}, padded);
  };
  if constexpr (std::is_same_v<Real, float>) {
    if (x.type == ScalarType::BFloat16) {
      copied(torch::headeronly::BFloat16{});
      return {room, padded};
    }
    if (x.type == ScalarType::Half) {
      copied(torch::headeronly::Half{});
      return {room, padded};
    }
  }
  if (x.column == 1 && dim == padded) return {static_cast<const Real*>(x.data) + start, x.row};
  copied(Real{});
  return {room, padded};
}

// A result (T, H, D), contiguous.
struct Result {
  void* data;
  ScalarType type;
  int64_t heads, dim;

  // The rows of a head where they are to be, if they can be computed there; else in `room`, until `store`.
  template <class Real>
  Matrix<Real> rows(int64_t head, int64_t first, int64_t padded, Real* room) const {
    const bool here = type == (sizeof(Real) == 4 ? ScalarType::Float : ScalarType::Double) && dim == padded;
    if (!here) return {room, padded};
    return {static_cast<Real*>(data) + (first * heads + head) * dim, heads * dim};
  }

  template <class Real>
  void store(int64_t head, int64_t first, int64_t rows, Matrix<Real> from, const Real* room) const {
    if (from.data != room) return;
    const auto copied = [&](auto stored) {
      using Stored = decltype(stored);
      for (int64_t i = 0; i < rows; ++i) {
        Stored* to = static_cast<Stored*>(data) + ((first + i) * heads + head) * dim;
        for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<Stored>(from.row(i)[d]);
      }
    };
    if constexpr (std::is_same_v<Real, float>) {
      if (type == ScalarType::BFloat16) return copied(torch::headeronly::BFloat16{});
      if (type == ScalarType::Half) return copied(torch::headeronly::Half{});
    }
    copied(Real{});
  }

  // Zeros in rows first .. last - 1 of one head, or of all.
  void clear(int64_t first, int64_t last, int64_t head = -1) const {
    const int64_t size = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2, bytes = dim * size;
    char* to = static_cast<char*>(data) + first * heads * bytes;
    if (head < 0) {
      if (last > first) std::memset(to, 0, static_cast<size_t>((last - first) * heads * bytes));
      return;
    }
    for (int64_t i = 0; i < last - first; ++i) {
      std::memset(to + (i * heads + head) * bytes, 0, static_cast<size_t>(bytes));
    }
  }
};

// Memory of a thread, taken from in pieces that begin at whole cache lines.
class Room {
 public:
  explicit Room(int64_t bytes) : lines_(static_cast<size_t>(bytes / 64)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(lines_.data() + used_);
    used_ += bytes_of<T>(count) / 64;
    return piece;
  }
  template <class T>
  static int64_t bytes_of(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

 private:
  std::vector<Line> lines_;
  int64_t used_ = 0;
};

// Rows of a product that are summed up at a time, in registers, of which there are 16 or 32.
#if defined(__aarch64__)
template <class L>
constexpr int kRowsOf = 8;
#else
template <class L>
constexpr int kRowsOf = sizeof(typename L::Vector) == 64 ? 8 : 4;
#endif

// products[r][v] = sum_d a[r][d] * b[d][v]: Rows keys by the queries of a block, which are transposed.
template <class L, int Rows, int V>
LAVIT_INLINE void products(Matrix<const typename L::Real> a, int64_t first, const typename L::Vector* b, int64_t dim,
                           typename L::Vector (&sums)[Rows][V]) {
  const typename L::Real* row[Rows];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    row[r] = a.row(first + r);
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[r][v] = typename L::Vector{};
  }
  for (int64_t d = 0; d < dim; ++d) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] += b[d * V + v] * row[r][d];
    }
  }
}

// Which steps of a product count for row r of a triangular matrix of weights: all, those up to r + shift, those from
// r - shift on.
enum class Seen { kAll, kUpTo, kFrom };

// c[r] (+)= sum_i a[r * a_row + i * a_step] * b[i], times factor[r]; Columns vectors of the rows.
template <class L, int Rows, int Columns, bool Add>
LAVIT_INLINE void multiply_tile(const typename L::Real* a, int64_t a_row, int64_t a_step,
                                Matrix<const typename L::Real> b, int64_t begin, int64_t end,
                                Matrix<typename L::Real> c, const typename L::Real* factor) {
  typename L::Vector sum[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int n = 0; n < Columns; ++n) sum[r][n] = Add ? L::load(c.row(r) + n * L::kLanes) : typename L::Vector{};
  }
  const typename L::Real* weight = a + begin * a_step;
  const typename L::Real* other = b.row(begin);
  for (int64_t i = begin; i < end; ++i, weight += a_step, other += b.step) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
      for (int n = 0; n < Columns; ++n) sum[r][n] += L::load(other + n * L::kLanes) * weight[r * a_row];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int n = 0; n < Columns; ++n) L::store(c.row(r) + n * L::kLanes, Add ? sum[r][n] : sum[r][n] * factor[r]);
  }
}

template <class L, int Rows, int Columns, bool Add>
LAVIT_INLINE void multiply_rows(const typename L::Real* a, int64_t a_row, int64_t a_step,
                                Matrix<const typename L::Real> b, Matrix<typename L::Real> c, int64_t rows,
                                int64_t steps, const typename L::Real* factor, Seen seen, int64_t shift) {
  int64_t r = 0;
  for (; r + Rows <= rows; r += Rows) {
    const int64_t begin = seen == Seen::kFrom ? std::max<int64_t>(0, r - shift) : 0;
    const int64_t end = seen == Seen::kUpTo ? std::min(steps, r + Rows + shift) : steps;
    multiply_tile<L, Rows, Columns, Add>(a + r * a_row, a_row, a_step, b, std::min(begin, end), end,
                                         {c.row(r), c.step}, Add ? nullptr : factor + r);
  }
  if constexpr (Rows > 1) {
    if (r < rows) {
      const int64_t moved = seen == Seen::kFrom ? shift - r : shift + r;
      multiply_rows<L, Rows / 2, Columns, Add>(a + r * a_row, a_row, a_step, b, {c.row(r), c.step}, rows - r, steps,
                                               Add ? nullptr : factor + r, seen, moved);
    }
  }
}

// Vectors of a head's columns, of whose lanes there is a multiple: after those of L, one at most of half of them.
template <class L>
using Least = Lanes<typename L::Real, std::min<int>(sizeof(typename L::Vector), 32)>;

// As above for all columns.
template <class L, bool Add>
LAVIT_INLINE void multiply(const typename L::Real* a, int64_t a_row, int64_t a_step,
                           Matrix<const typename L::Real> b, Matrix<typename L::Real> c, int64_t rows, int64_t steps,
                           int64_t columns, const typename L::Real* factor, Seen seen, int64_t shift) {
  constexpr int64_t kLanes = L::kLanes;
  constexpr int kRows = kRowsOf<L>;
  int64_t n = 0;
  for (; n + 3 * kLanes <= columns; n += 3 * kLanes) {
    multiply_rows<L, kRows, 3, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps, factor,
                                    seen, shift);
  }
  if (n + 2 * kLanes <= columns) {
    multiply_rows<L, kRows, 2, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps, factor,
                                    seen, shift);
    n += 2 * kLanes;
  } else if (n + kLanes <= columns) {
    multiply_rows<L, kRows, 1, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps, factor,
                                    seen, shift);
    n += kLanes;
  }
  if constexpr (Least<L>::kLanes < kLanes) {
    if (n < columns) {
      multiply_rows<Least<L>, kRows, 1, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps,
                                             factor, seen, shift);
    }
  }
}

// Rows of a head into the lanes, times factor: to[d * width + i] = x[i][d], zeros beyond the rows.
template <class Real>
LAVIT_INLINE void transpose(Matrix<const Real> x, int64_t rows, int64_t dim, Real factor, Real* to, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    const Real* row = x.row(i);
    for (int64_t d = 0; d < dim; ++d) to[d * width + i] = row[d] * factor;
  }
  for (int64_t i = rows; i < width; ++i) {
    for (int64_t d = 0; d < dim; ++d) to[d * width + i] = Real(0);
  }
}

// The pairs of an image and a head, and what they cost. A thread has a stretch of the whole cost, so that none waits
// for another's long image; each pair is one thread's.
class Heads {
 public:
  explicit Heads(const Attention& a) : heads_(a.heads), cost_(static_cast<size_t>(a.images + 1), 0) {
    for (int64_t b = 0; b < a.images; ++b) {
      const int64_t n = a.cu_q[b + 1] - a.cu_q[b], m = a.cu_k[b + 1] - a.cu_k[b];
      longest_q_ = std::max(longest_q_, n);
      longest_k_ = std::max(longest_k_, m);
      cost_[b + 1] = cost_[b] + (n * m + n + m + 1) * heads_;
    }
  }
  int64_t longest_q() const { return longest_q_; }
  int64_t longest_k() const { return longest_k_; }
  int64_t image(int64_t pair) const { return pair / heads_; }
  int64_t head(int64_t pair) const { return pair % heads_; }

  // Calls work(first pair, last pair + 1) for each thread's.
  template <class Work>
  void share(int64_t dim, const Work& work) const {
    const int64_t pairs = static_cast<int64_t>(cost_.size() - 1) * heads_;
    // A thread that starts costs about as much as a hundred thousand multiply-adds.
    const int64_t grain = std::max<int64_t>(1, 50'000 / std::max<int64_t>(1, dim));
    torch::stable::parallel_for(0, cost_.back(), grain, [&](int64_t begin, int64_t end) {
      const auto at = [&](int64_t cost) {
        return first_where(int64_t{0}, pairs, [&](int64_t pair) { return start(pair) >= cost; });
      };
      const int64_t first = at(begin), last = at(end);
      if (first < last) work(first, last);
    });
  }

 private:
  int64_t start(int64_t pair) const {
    const int64_t b = image(pair);
    return cost_[b] + (cost_[b + 1] - cost_[b]) / heads_ * head(pair);
  }

  int64_t heads_, longest_q_ = 0, longest_k_ = 0;
  std::vector<int64_t> cost_;
};

// Elements that the parts of the largest heads take, their columns filled up to whole vectors: queries, keys, weights of
// a block of queries, and such a block with its columns turned into rows.
template <class L>
struct Sizes {
  int64_t columns, q, k, weights, turned;

  Sizes(const Attention& a, const Heads& heads) {
    constexpr int64_t kLeast = Least<L>::kLanes, kWidth = 2 * L::kLanes;
    columns = (a.dim + kLeast - 1) / kLeast * kLeast;
    q = heads.longest_q() * columns;
    k = heads.longest_k() * columns;
    weights = heads.longest_k() * kWidth;
    turned = a.dim * kWidth;
  }
};

// Body<Real>::run<Bytes> of all pairs, on several threads. float64, which is for comparisons, has vectors of 16 bytes
// only: compiling takes long enough.
template <template <class> class Body, class Problem>
void run(const Problem& p, const Heads& heads, bool wide, int64_t width) {
  const auto share = [&](const auto& body, auto worker) {
    heads.share(p.a.dim, [&](int64_t first, int64_t last) { worker(body, first, last); });
  };
  if (wide) return share(Body<double>{p, heads}, with_16<Body<double>, int64_t, int64_t>);
  share(Body<float>{p, heads}, compiled_for<Body<float>, int64_t, int64_t>(width));
}

// The operators' arguments, checked: whatever the offsets hold, nothing outside is touched.
Attention checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                  const std::optional<Tensor>& key_weight, bool causal, double scale);
Layout layout_of(const char* name, const Tensor& x, const Tensor& like, int64_t rows);
// log w of (Tk,) weights, as a tensor that `key_weight` is of the kind of.
Tensor logarithms(const Tensor& key_weight);

}  // namespace lavit::cpu
