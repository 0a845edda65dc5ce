// varlen_attention: what its forward and backward share: inputs of any layout, vectors, the two kinds of product.
//
// The logits of a block of queries are computed with the queries in the lanes: a key's element is broadcast, so that
// the maximum, the exponential and the sum of a query's keys need nothing of other lanes, and a lane's operations do
// not depend on what is beside it. Products with the weights have the columns of a head in the lanes.
//
// Vectors are the compiler's (GCC and clang), so that one text serves SSE, AVX2, AVX-512 and NEON.
#pragma once

#include "../common.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>

// Vectors are arguments of what is inlined only. Not undone: templates are instantiated at the end of a file.
#pragma GCC diagnostic ignored "-Wpsabi"

#define LAVIT_INLINE inline __attribute__((always_inline))  // so that it is compiled for its caller's instruction set

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
void copy_rows(const Stored* from, int64_t row, int64_t column, int64_t rows, int64_t dim, Matrix<Real> to,
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
    copy_rows<Real>(static_cast<const Stored*>(x.data) + start, x.row, x.column, rows, dim, {room, padded}, padded);
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

struct alignas(64) Line {
  unsigned char bytes[64];
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

// Vectors of Bytes bytes; Rows x Columns of them are summed up in registers, of which there are 16 or 32.
template <class T, int Bytes, bool Many>
struct Lanes {
  using Real = T;
  using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T Vector __attribute__((vector_size(Bytes)));
  typedef Int Ints __attribute__((vector_size(Bytes)));
  typedef uint32_t Words __attribute__((vector_size(Bytes)));
  typedef T Unaligned __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
  typedef Int UnalignedInts __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
  static constexpr int kLanes = Bytes / sizeof(T);
  static constexpr int kRows = Many ? 8 : 4;

  static LAVIT_INLINE Vector load(const T* from) { return *reinterpret_cast<const Unaligned*>(from); }
  static LAVIT_INLINE void store(T* to, const Vector& x) { *reinterpret_cast<Unaligned*>(to) = x; }
  static LAVIT_INLINE Vector all(T x) { return Vector{} + x; }
  static LAVIT_INLINE Ints counted_from(int64_t first) {
    alignas(Bytes) Int place[kLanes];
    for (int i = 0; i < kLanes; ++i) place[i] = static_cast<Int>(first + i);
    return *reinterpret_cast<const UnalignedInts*>(place);
  }
};

// e^x for x <= 64 log 2, within 2 units in the last place; 0 below e^-87 (float64: the C library's); NaN of NaN.
template <class L>
LAVIT_INLINE typename L::Vector exponential(const typename L::Vector& x) {
  using Vector = typename L::Vector;
  if constexpr (sizeof(typename L::Real) == 8) {
    Vector e{};
    for (int i = 0; i < L::kLanes; ++i) e[i] = std::exp(x[i]);
    return e;
  } else {
    using Words = typename L::Words;
    // x = n log 2 + r: adding 1.5 * 2^23 rounds to a whole number, which is then in the low bits.
    const Vector least = L::all(-87.0f), rounder = L::all(12582912.0f);
    const Vector t = x < least ? least : x;
    const Vector shifted = t * 1.44269504f + rounder;
    const Vector n = shifted - rounder;
    const Vector r = (t - n * 0.693359375f) - n * -2.12194440e-4f;  // log 2 in two parts, n times the first exact
    // (e^r - 1 - r) / r^2 for |r| <= log 2 / 2, Chebyshev: e^r within 0.2 * 2^-24.
    Vector p = r * 1.393368817e-3f + 8.363205008e-3f;
    p = p * r + 4.1666463017e-2f;
    p = p * r + 1.6666576266e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    Words bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits << 23) + 0x3f800000u;  // of 2^n
    Vector power;
    std::memcpy(&power, &bits, sizeof(power));
    return x < least ? Vector{} : p * power;
  }
}

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

// As above for all columns, a multiple of the lanes.
template <class L, bool Add>
LAVIT_INLINE void multiply(const typename L::Real* a, int64_t a_row, int64_t a_step,
                           Matrix<const typename L::Real> b, Matrix<typename L::Real> c, int64_t rows, int64_t steps,
                           int64_t columns, const typename L::Real* factor, Seen seen, int64_t shift) {
  constexpr int64_t kLanes = L::kLanes;
  int64_t n = 0;
  for (; n + 3 * kLanes <= columns; n += 3 * kLanes) {
    multiply_rows<L, L::kRows, 3, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps,
                                       factor, seen, shift);
  }
  if (n + 2 * kLanes <= columns) {
    multiply_rows<L, L::kRows, 2, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps,
                                       factor, seen, shift);
  } else if (n + kLanes <= columns) {
    multiply_rows<L, L::kRows, 1, Add>(a, a_row, a_step, {b.data + n, b.step}, {c.data + n, c.step}, rows, steps,
                                       factor, seen, shift);
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

// Body::run<L, C>(problem, heads, first, last), L for the queries in lanes and C for the columns, compiled for vectors
// of 16, 32 and 64 bytes. Columns that do not fill vectors of 64 are computed in narrower ones. float64, which is for
// comparisons, has vectors of 16 bytes only: compiling takes long enough.
template <class Body, class Real>
void run16(const typename Body::Problem& p, const Heads& heads, int64_t first, int64_t last) {
#if defined(__aarch64__)
  using L = Lanes<Real, 16, true>;
#else
  using L = Lanes<Real, 16, false>;
#endif
  Body::template run<L, L>(p, heads, first, last);
}

#if defined(__x86_64__)
template <class Body>
__attribute__((target("avx2,fma"))) void run32(const typename Body::Problem& p, const Heads& heads, int64_t first,
                                               int64_t last) {
  Body::template run<Lanes<float, 32, false>, Lanes<float, 32, false>>(p, heads, first, last);
}

template <class Body, int Bytes>
__attribute__((target("avx512f,avx512vl,fma"))) void run64(const typename Body::Problem& p, const Heads& heads,
                                                           int64_t first, int64_t last) {
  Body::template run<Lanes<float, 64, true>, Lanes<float, Bytes, true>>(p, heads, first, last);
}
#endif

// All pairs, on several threads.
template <class Body>
void run(const typename Body::Problem& p, const Heads& heads, bool wide, int64_t width) {
  auto* worker = wide ? &run16<Body, double> : &run16<Body, float>;
#if defined(__x86_64__)
  if (!wide && width == 32) worker = &run32<Body>;
  if (!wide && width == 64) worker = p.a.dim % 16 == 0 ? &run64<Body, 64> : &run64<Body, 32>;
#else
  static_cast<void>(width);
#endif
  heads.share(p.a.dim, [&](int64_t first, int64_t last) { worker(p, heads, first, last); });
}

// The operators' arguments, checked: whatever the offsets hold, nothing outside is touched.
Attention checked(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                  const std::optional<Tensor>& key_weight, bool causal, double scale);
Layout layout_of(const char* name, const Tensor& x, const Tensor& like, int64_t rows);
// log w of (Tk,) weights, as a tensor that `key_weight` is of the kind of.
Tensor logarithms(const Tensor& key_weight);
// Bytes of the vectors to compute with: those asked for, 0 for the widest that this machine has.
int64_t vector_bytes(int64_t width);

}  // namespace lavit::cpu
