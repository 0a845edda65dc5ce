// nearest_code: arg max_j x.c_j + b_j, the product and its running maximum in registers, never the n x K matrix.
//
// A score is D multiply-adds and, beside them, one max; at n = 5440, K = 16384, D = 32 that is 2.9e9 multiply-adds,
// 25 ms on two cores that do two of 8 floats a cycle at 3.5 GHz. Memory is no limit: the codes (2 MB) are read from the
// outer cache once for each thousand rows, and 16 KB of them serve all those rows from the inner one.
//
// A tile is `Rows` vectors x side by side in lanes, against which 6 codes are multiplied at a time. All lanes do the
// same operations in the same order, so a row's score depends neither on its place nor on the other rows. Vectors are
// the compiler's (GCC and clang), so that one text serves SSE, AVX2, AVX-512 and NEON; which is chosen when it runs.
#include "vectors.h"

#include <algorithm>
#include <limits>
#include <type_traits>

namespace lavit::cpu {
namespace {

constexpr int64_t kCodes = 6;                    // codes that are multiplied at a time
constexpr int64_t kInnerBytes = 16 * 1024;       // of codes: they and a tile stay in the first-level cache
constexpr int64_t kOuterBytes = 128 * 1024;      // of rows that a thread holds at a time, in the second-level cache

template <class Real>
struct Search {
  const Real *x, *codes, *bias;  // (n, dim), (num_codes, dim), (num_codes,)
  int64_t n, num_codes, dim;
  int64_t* ids;  // (n,)
  Real* best;    // (n,)

  // Tiles begin .. end - 1 of the rows.
  template <int Bytes>
  void run(int64_t begin, int64_t end) const;
};

// Of a tile. 12 sums fill 16 registers with what they are made from, 24 fill 32.
constexpr int vectors_of(int bytes) {
#if defined(__aarch64__)
  static_cast<void>(bytes);
  return 4;
#else
  return bytes == 64 ? 4 : 2;
#endif
}

template <class Real, int Bytes, int Vectors>
struct Tile {
  using L = Lanes<Real, Bytes>;
  using Id = typename L::Int;
  using Vector = typename L::Vector;
  using Ids = typename L::Ints;
  static constexpr int64_t kLanes = L::kLanes;
  static constexpr int64_t kRows = kLanes * Vectors;

  Vector best[Vectors];
  Ids ids[Vectors];

  // x is (dim, kRows). Codes first .. first + kCodes - 1; beyond the last one, that one again, which changes nothing.
  LAVIT_INLINE void compare(const Search<Real>& s, const Vector* x, int64_t first) {
    const Real* code[kCodes];
    Vector score[kCodes][Vectors];
#pragma GCC unroll 6
    for (int64_t r = 0; r < kCodes; ++r) {
      const int64_t j = std::min(first + r, s.num_codes - 1);
      code[r] = s.codes + j * s.dim;
      asm("" : "+r"(code[r]));  // clang would compute it again for every element
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) score[r][v] = Vector{} + s.bias[j];
    }
    for (int64_t d = 0; d < s.dim; ++d) {
#pragma GCC unroll 6
      for (int64_t r = 0; r < kCodes; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) score[r][v] += x[d * Vectors + v] * code[r][d];
      }
    }
    // Few tiles hold a new maximum: about ln K of K / 6 in each lane. Only those look for its code.
    Vector most[Vectors];
    Ids changed{};
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      most[v] = best[v];
#pragma GCC unroll 6
      for (int64_t r = 0; r < kCodes; ++r) most[v] = score[r][v] > most[v] ? score[r][v] : most[v];  // drops NaN
      // `most > best` as integers, which GCC would compute lane by lane.
      changed |= reinterpret_cast<Ids>(most[v]) ^ reinterpret_cast<Ids>(best[v]);
    }
    int64_t words[Bytes / sizeof(int64_t)], any = 0;
    std::memcpy(words, &changed, Bytes);
#pragma GCC unroll 8
    for (const int64_t word : words) any |= word;
    if (__builtin_expect(any == 0, 1)) return;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      Ids found{};
#pragma GCC unroll 6
      for (int64_t r = kCodes - 1; r >= 0; --r) {  // the lowest of equal ones comes last
        found = score[r][v] == most[v] ? Ids{} + static_cast<Id>(first + r) : found;
      }
      ids[v] = best[v] == most[v] ? ids[v] : found;
      best[v] = most[v];
    }
  }
};

template <class Real>
template <int Bytes>
LAVIT_INLINE void Search<Real>::run(int64_t begin, int64_t end) const {
  constexpr int Vectors = vectors_of(Bytes);
  using T = Tile<Real, Bytes, Vectors>;
  const Search& s = *this;
  using Vector = typename T::Vector;
  const int64_t tile_bytes = T::kRows * s.dim * static_cast<int64_t>(sizeof(Real));
  const int64_t held = std::clamp<int64_t>(kOuterBytes / std::max<int64_t>(1, tile_bytes), 1, end - begin);
  const int64_t inner = kInnerBytes / std::max<int64_t>(1, s.dim * static_cast<int64_t>(sizeof(Real)));
  const int64_t step = std::max<int64_t>(1, inner / kCodes) * kCodes;
  std::vector<Line> rows((held * tile_bytes + sizeof(Line) - 1) / sizeof(Line));
  std::vector<Line> states((held * sizeof(T) + sizeof(Line) - 1) / sizeof(Line));
  Real* x = reinterpret_cast<Real*>(rows.data());
  T* state = reinterpret_cast<T*>(states.data());

  for (int64_t tile = begin; tile < end; tile += held) {
    const int64_t tiles = std::min(held, end - tile);
    for (int64_t t = 0; t < tiles; ++t) {
      for (int v = 0; v < Vectors; ++v) {
        state[t].best[v] = typename T::Vector{} - std::numeric_limits<Real>::infinity();
        state[t].ids[v] = typename T::Ids{};
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = (tile + t) * T::kRows, real = std::min(T::kRows, s.n - row);
      for (int64_t d = 0; d < s.dim; ++d) {
        Real* to = x + (t * s.dim + d) * T::kRows;
        for (int64_t lane = 0; lane < T::kRows; ++lane) to[lane] = lane < real ? s.x[(row + lane) * s.dim + d] : Real(0);
      }
    }
    for (int64_t first = 0; first < s.num_codes; first += step) {
      const int64_t last = std::min(first + step, s.num_codes);
      for (int64_t t = 0; t < tiles; ++t) {
        T local = state[t];
        const auto* vectors = reinterpret_cast<const Vector*>(x + t * s.dim * T::kRows);
        for (int64_t j = first; j < last; j += kCodes) local.compare(s, vectors, j);
        state[t] = local;
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = (tile + t) * T::kRows, real = std::min(T::kRows, s.n - row);
      for (int64_t lane = 0; lane < real; ++lane) {
        s.best[row + lane] = state[t].best[lane / T::kLanes][lane % T::kLanes];
        s.ids[row + lane] = state[t].ids[lane / T::kLanes][lane % T::kLanes];
      }
    }
  }
}

}  // namespace

// x (n, D), codes (K, D), bias (K,), all float32 or all float64 -> ids (n,) int64, best (n,).
// width: bytes of the vectors to compute with, 0 for the widest that this machine has.
std::tuple<Tensor, Tensor> nearest_code(const Tensor& x, const Tensor& codes, const Tensor& bias, int64_t width) {
  check_rows("x", x, 2);
  check_rows("codes", codes, 2);
  check_rows("bias", bias, 1);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x: expected float32 or float64");
  STD_TORCH_CHECK(codes.scalar_type() == x.scalar_type() && bias.scalar_type() == x.scalar_type(),
                  "codes, bias: expected the dtype of x");
  const int64_t n = x.size(0), dim = x.size(1), num_codes = codes.size(0);
  STD_TORCH_CHECK(codes.size(1) == dim, "codes: expected dimension ", dim, ", got ", codes.size(1));
  STD_TORCH_CHECK(num_codes >= 1 && num_codes <= std::numeric_limits<int32_t>::max(),
                  "codes: expected 1 to 2^31 - 1, got ", num_codes);
  STD_TORCH_CHECK(bias.size(0) == num_codes, "bias: expected ", num_codes, " elements, got ", bias.size(0));
  width = checked_width(width);

  Tensor ids = torch::stable::new_empty(x, {n}, ScalarType::Long);
  Tensor best = torch::stable::new_empty(x, {n});
  if (n == 0) return {ids, best};
  const auto go = [&](auto zero) {
    using Real = decltype(zero);
    const Search<Real> search{static_cast<const Real*>(x.const_data_ptr()),
                              static_cast<const Real*>(codes.const_data_ptr()),
                              static_cast<const Real*>(bias.const_data_ptr()), n, num_codes, dim,
                              data<int64_t>(ids), data<Real>(best)};
    const int64_t rows = width / static_cast<int64_t>(sizeof(Real)) * vectors_of(static_cast<int>(width));
    // A thread that starts costs about as much as a hundred thousand multiply-adds.
    const int64_t grain = std::max<int64_t>(1, 100'000 / (rows * num_codes * std::max<int64_t>(1, dim)));
    in_lanes(search, (n + rows - 1) / rows, grain, width);
  };
  x.scalar_type() == ScalarType::Float ? go(0.0f) : go(0.0);
  return {ids, best};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("nearest_code", TORCH_BOX(&lavit::cpu::nearest_code)); }
