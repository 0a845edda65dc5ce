// gumbel_select: the noise of an image, its decisions, its probabilities and its partition while its scores are at hand.
//
// A patch: 8 bytes of scores in, 12 out, and about 60 operations: 10 rounds of Philox, a logarithm, an exponential and
// two divisions in float64. At 64 images of 256 that is 30 us on one core with vectors of 64 bytes; memory is no limit.
//
// The definition (kernels/gumbel_select/reference.py) is met to the bit in all that is decided, although its logarithms
// are those of torch and here logit u is computed otherwise: where the two could round to different sides, which is for
// one patch in 1e13, the kernel says so and decides nothing. Vectors are the compiler's, as in nearest_code.cpp.
#include "exp.h"

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <optional>

namespace lavit::cpu {
namespace {

constexpr int64_t kBlock = 128;  // patches whose numbers a thread holds side by side
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <class Real>
struct Select {
  const Real *scores, *noise;  // (batch, patches, 2), noise or null
  const int64_t* seeds;        // (batch,) or null
  double tau;
  int64_t batch, patches, min_keep;
  Real *keep, *prob;  // (batch, patches)
  int32_t *order, *counts;
  std::atomic<bool>* certain;  // of all images

  template <int Bytes>
  void run(int64_t begin, int64_t end) const;
};

// Two margins computed in two ways are nearer than this: four roundings of numbers up to 17, and a few of the scores'.
LAVIT_INLINE double uncertainty(double size) { return 0x1p-43 + 0x1p-50 * size; }

template <int Bytes>
struct Patches {
  using L = Lanes<double, Bytes>;
  using Reals = typename L::Vector;
  using Ints = typename L::Ints;
  using Words = typename L::Words;  // of Philox: 32 bits in each, and whatever above them
  static constexpr int64_t kLanes = L::kLanes;
  static constexpr double kShift = 0x1.8p52;  // added to a small integer, it puts it into the lowest bits

  // The product of the lower halves. GCC makes three multiplications of a 64-bit one whose upper halves are zero.
  static LAVIT_INLINE void multiply(Words& out, const Words& x, const Words& by) {
#if defined(__x86_64__)
    if constexpr (Bytes == 16) {
      out = x;
      asm("pmuludq %1, %0" : "+x"(out) : "x"(by));
    } else {
      asm("vpmuludq %2, %1, %0" : "=v"(out) : "v"(x), "v"(by));
    }
#else
    out = (x & 0xFFFFFFFF) * (by & 0xFFFFFFFF);
#endif
  }

  // logit(t / 2^24) for the odd t of the reference's Philox4x32-10, key = seed, counter = (patch, 0, 0, 0).
  static LAVIT_INLINE void logistic(Reals& out, int64_t seed, int64_t first) {
    const Words by0 = Words{} + 0xD2511F53, by1 = Words{} + 0xCD9E8D57;
    uint64_t k0 = static_cast<uint64_t>(seed), k1 = k0 >> 32;
    alignas(64) uint64_t patch[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) patch[lane] = static_cast<uint64_t>(first + lane);
    Words c0, c1{}, c2{}, c3{}, p0, p1;
    std::memcpy(&c0, patch, Bytes);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      multiply(p0, c0, by0);
      multiply(p1, c2, by1);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    const Words t = ((c0 & 0xFFFFFE00) >> 8) + 1;
    log_of_ratio(out, t, 0x1000000 - t);
  }

  // log(a / b) for integers in (0, 2^24). With a / b = 2^e r, r from 1/sqrt(2) to sqrt(2), and f = (r - 1) / (r + 1):
  // e log 2 + 2 (f + f^3 / 3 + f^5 / 5 + ...); f is rounded once, as sums and differences of a and b are exact.
  static LAVIT_INLINE void log_of_ratio(Reals& out, const Words& a, const Words& b) {
    const Ints bits_a = (Ints)((Reals)(a | 0x4330000000000000) - 0x1p52);
    const Ints bits_b = (Ints)((Reals)(b | 0x4330000000000000) - 0x1p52);
    const Ints exponent = (bits_a >> 52) - (bits_b >> 52);
    Reals e = (Reals)(exponent + (Ints)(Reals{} + kShift)) - kShift;
    Reals x = (Reals)((bits_a & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000);
    const Reals y = (Reals)((bits_b & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000);
    // Every comparison in a choice of its own: GCC takes apart those of 64 bytes whose results it has to keep.
    const Reals high = y * 1.4142135623730951, low = y * 0.7071067811865476;
    e = x > high ? e + 1.0 : e;
    e = x < low ? e - 1.0 : e;
    const Reals smaller = x * 0.5, larger = x * 2.0;
    x = x > high ? smaller : (x < low ? larger : x);
    const Reals f = (x - y) / (x + y), g = f * f;
    Reals sum = Reals{} + 1.0 / 21;
    for (const double c : {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3}) {
      sum = sum * g + c;
    }
    out = e * 0x1.62e42fee00000p-1 + (2.0 * f + (2.0 * f * (sum * g) + e * 0x1.a39ef35793c76p-33));
  }

  // 1 / (1 + exp(-x)), within a few roundings; what would be no normal number is 0. Of NaN something.
  static LAVIT_INLINE void sigmoid(Reals& out, const Reals& x) {
    Reals z;
    exponential<L>(z, x > 0 ? -x : x);
    out = (x > 0 ? Reals{} + 1.0 : z) / (1.0 + z);
  }
};

// The scores' differences of `count` patches, and NaN up to kBlock. Given noise is added in the scores' precision.
template <class Real>
LAVIT_INLINE void differences(double* d, const Real* scores, const Real* noise, int64_t count) {
  if (noise != nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      const Real first = scores[2 * i] + noise[2 * i], second = scores[2 * i + 1] + noise[2 * i + 1];
      d[i] = static_cast<double>(first - second);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) d[i] = static_cast<double>(scores[2 * i]) - static_cast<double>(scores[2 * i + 1]);
  }
  for (int64_t i = count; i < kBlock; ++i) d[i] = kNan;
}

// The image's order from its mask, of which `count` are kept. Without branches, which no predictor could foresee.
template <class Real>
LAVIT_INLINE void partition(const Real* keep, int64_t patches, int64_t count, int32_t* order) {
  int64_t kept = 0;
  for (int64_t i = 0; i < patches; ++i) {
    const int64_t is_kept = keep[i] > 0, dropped = count + i - kept;
    order[dropped + (kept - dropped) * is_kept] = static_cast<int32_t>(i);
    kept += is_kept;
  }
}

// Keeps the min_keep largest margins, at equality the first; NaN ranks as -inf and is not kept. Returns how many that
// are, or -1 where another way of computing a margin drawn by seeds could rank otherwise.
template <class Real>
int64_t keep_most_probable(const Select<Real>& s, const double* margin, Real* keep) {
  const auto rank = [&](int64_t i) {
    return margin[i] == margin[i] ? margin[i] : -std::numeric_limits<double>::infinity();
  };
  std::vector<int32_t> index(s.patches);
  std::iota(index.begin(), index.end(), 0);
  const auto last = index.begin() + (s.min_keep - 1);
  std::nth_element(index.begin(), last, index.end(), [&](int32_t i, int32_t j) {
    return rank(i) > rank(j) || (rank(i) == rank(j) && i < j);
  });
  // Beyond 2^60 the noise is rounded away, and both ways have the scores' difference.
  if (const double least = rank(*last); s.seeds != nullptr && least < 0x1p60 && least > -0x1p60) {
    const double reach = uncertainty(least < 0 ? -least : least);
    if (std::any_of(last + 1, index.end(), [&](int32_t i) { return least - rank(i) < reach; })) return -1;
  }
  int64_t count = 0;
  std::fill(keep, keep + s.patches, Real(0));
  for (auto i = index.begin(); i <= last; ++i) {
    keep[*i] = margin[*i] == margin[*i];
    count += margin[*i] == margin[*i];
  }
  return count;
}

// Image b. False where a decision is too near to be the reference's for certain.
template <class Real, int Bytes>
LAVIT_INLINE bool select_image(const Select<Real>& s, int64_t b, double* margins) {
  using L = Patches<Bytes>;
  using Reals = typename L::Reals;
  alignas(64) double margin[kBlock], kept[kBlock], prob[kBlock];
  const int64_t row = b * s.patches;
  Reals counts{}, unsure{};
  for (int64_t start = 0; start < s.patches; start += kBlock) {
    const int64_t count = std::min(kBlock, s.patches - start), at = row + start;
    differences(margin, s.scores + 2 * at, s.noise == nullptr ? nullptr : s.noise + 2 * at, count);
    for (int64_t i = 0; i < count; i += L::kLanes) {
      Reals m, p;
      std::memcpy(&m, margin + i, Bytes);
      Reals keep;
      if (s.seeds != nullptr) {
        Reals noise;
        L::logistic(noise, s.seeds[b], start + i);
        const Reals size = m > 0 ? m : -m;
        m += noise;
        keep = m > 0 ? Reals{} + 1.0 : Reals{};
        unsure = (m > 0 ? m : -m) < size * 0x1p-50 + 0x1p-43 ? Reals{} + 1.0 : unsure;
        std::memcpy(margin + i, &m, Bytes);
      } else {
        keep = m >= 0 ? Reals{} + 1.0 : Reals{};
      }
      counts += keep;
      L::sigmoid(p, s.tau == 1 ? m : m / s.tau);
      p = m == m ? p : Reals{};
      std::memcpy(prob + i, &p, Bytes);
      std::memcpy(kept + i, &keep, Bytes);
    }
    for (int64_t i = 0; i < count; ++i) s.keep[at + i] = static_cast<Real>(kept[i]);
    for (int64_t i = 0; i < count; ++i) s.prob[at + i] = static_cast<Real>(prob[i]);
    if (margins != nullptr) std::copy(margin, margin + count, margins + start);
  }
  double kept_in[L::kLanes], unsure_in[L::kLanes];
  std::memcpy(kept_in, &counts, Bytes);
  std::memcpy(unsure_in, &unsure, Bytes);
  int64_t count = 0;
  for (int64_t lane = 0; lane < L::kLanes; ++lane) {
    count += static_cast<int64_t>(kept_in[lane]);
    if (unsure_in[lane] != 0) return false;
  }
  if (count < s.min_keep) count = keep_most_probable(s, margins, s.keep + row);
  if (count < 0) return false;
  s.counts[b] = static_cast<int32_t>(count);
  partition(s.keep + row, s.patches, count, s.order + row);
  return true;
}

template <class Real>
template <int Bytes>
LAVIT_INLINE void Select<Real>::run(int64_t begin, int64_t end) const {
  std::vector<double> margins(min_keep > 0 ? patches : 0);
  bool sure = true;
  for (int64_t b = begin; b < end; ++b) {
    sure &= select_image<Real, Bytes>(*this, b, min_keep > 0 ? margins.data() : nullptr);
  }
  if (!sure) *certain = false;
}

// A gradient (batch, patches) of any strides, or none.
template <class Real>
struct Gradient {
  const Real* at = nullptr;
  int64_t image = 0, patch = 0;

  Gradient(const std::optional<Tensor>& t, const Tensor& prob) {
    if (!t.has_value()) return;
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == prob.size(0) && t->size(1) == prob.size(1),
                    "gradients: expected the shape of prob");
    STD_TORCH_CHECK(t->scalar_type() == prob.scalar_type(), "gradients: expected the dtype of prob");
    at = static_cast<const Real*>(t->const_data_ptr());
    image = t->stride(0);
    patch = t->stride(1);
  }
};

// In the order of the definition: nothing is added to a product, so no compiler can round otherwise.
template <class Real>
void differentiate(const std::optional<Tensor>& grad_keep, const std::optional<Tensor>& grad_prob, const Tensor& prob,
                   Real tau, Tensor& out) {
  const int64_t batch = prob.size(0), patches = prob.size(1);
  const Gradient<Real> first(grad_keep, prob), second(grad_prob, prob);
  const Real* p = static_cast<const Real*>(prob.const_data_ptr());
  Real* to = data<Real>(out);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, patches));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t i = 0; i < patches; ++i) {
        Real g = 0;
        if (first.at != nullptr) g += first.at[b * first.image + i * first.patch];
        if (second.at != nullptr) g += second.at[b * second.image + i * second.patch];
        const Real q = p[b * patches + i], d = g * q * (1 - q) / tau;
        to[2 * (b * patches + i)] = d;
        to[2 * (b * patches + i) + 1] = -d;
      }
    }
  });
}

void check_real(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  ": expected float32 or float64");
  check_rows(name, t, 2);
}

}  // namespace

// scores (B, N, 2), noise as they, seeds (B,) int64 -> keep, prob (B, N), order, cu_kept, cu_dropped as in the reference,
// and whether they are certain: where they are not, they hold anything, and the reference has to decide.
// width: bytes of the vectors to compute with, 0 for the widest that this machine has.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, bool> gumbel_select(
    const Tensor& scores, const std::optional<Tensor>& noise, const std::optional<Tensor>& seeds, double tau,
    int64_t min_keep, int64_t width) {
  check_real("scores", scores);
  STD_TORCH_CHECK(scores.dim() == 3 && scores.size(2) == 2, "scores: expected (B, N, 2)");
  const int64_t batch = scores.size(0), patches = scores.size(1);
  STD_TORCH_CHECK(batch <= INT32_MAX && scores.numel() / 2 <= INT32_MAX, "scores: expected at most 2^31 - 1 patches");
  STD_TORCH_CHECK(min_keep >= 0 && min_keep <= patches, "min_keep: expected 0 to ", patches, ", got ", min_keep);
  STD_TORCH_CHECK(!(noise.has_value() && seeds.has_value()), "noise, seeds: expected at most one of them");
  if (noise.has_value()) {
    check_rows("noise", *noise, 3);
    STD_TORCH_CHECK(noise->scalar_type() == scores.scalar_type() && noise->numel() == scores.numel(),
                    "noise: expected the shape and dtype of scores");
  }
  if (seeds.has_value()) {
    check_rows("seeds", *seeds, 1);
    STD_TORCH_CHECK(seeds->scalar_type() == ScalarType::Long && seeds->numel() == batch, "seeds: expected (B,) int64");
  }
  width = checked_width(width);

  const auto integers = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(scores, shape, ScalarType::Int);
  };
  Tensor keep = torch::stable::new_empty(scores, {batch, patches});
  Tensor prob = torch::stable::new_empty(scores, {batch, patches});
  Tensor order = integers({batch, patches}), cu_kept = integers({batch + 1}), cu_dropped = integers({batch + 1});
  int32_t *cu = data<int32_t>(cu_kept), *cu_other = data<int32_t>(cu_dropped);
  std::atomic<bool> certain{true};
  const auto go = [&](auto zero) {
    using Real = decltype(zero);
    const auto input = [](const std::optional<Tensor>& t) { return t.has_value() ? t->const_data_ptr() : nullptr; };
    const Select<Real> s{static_cast<const Real*>(scores.const_data_ptr()), static_cast<const Real*>(input(noise)),
                         static_cast<const int64_t*>(input(seeds)), tau, batch, patches, min_keep,
                         data<Real>(keep), data<Real>(prob), data<int32_t>(order), cu + 1, &certain};
    const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, patches));
    in_lanes(s, batch, grain, width);
  };
  scores.scalar_type() == ScalarType::Float ? go(0.0f) : go(0.0);
  if (!certain) return {keep, prob, order, cu_kept, cu_dropped, false};
  cu[0] = cu_other[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    cu[b + 1] += cu[b];
    cu_other[b + 1] = static_cast<int32_t>((b + 1) * patches - cu[b + 1]);
  }
  return {keep, prob, order, cu_kept, cu_dropped, true};
}

// The gradient (B, N, 2) of the scores, in the dtype of prob (B, N). The gradients given have any strides.
Tensor gumbel_select_backward(const std::optional<Tensor>& grad_keep, const std::optional<Tensor>& grad_prob,
                              const Tensor& prob, double tau) {
  check_real("prob", prob);
  STD_TORCH_CHECK(prob.dim() == 2, "prob: expected (B, N)");
  Tensor out = torch::stable::new_empty(prob, {prob.size(0), prob.size(1), 2});
  if (prob.scalar_type() == ScalarType::Float) {
    differentiate<float>(grad_keep, grad_prob, prob, static_cast<float>(tau), out);
  } else {
    differentiate<double>(grad_keep, grad_prob, prob, tau, out);
  }
  return out;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("gumbel_select", TORCH_BOX(&lavit::cpu::gumbel_select));
  m.impl("gumbel_select_backward", TORCH_BOX(&lavit::cpu::gumbel_select_backward));
}
