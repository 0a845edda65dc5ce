// draw_id: one id a row, by top-k, top-p, temperature and the inverse of the distribution function.
//
// A row's scores are read twice: for the greatest, and against the least of the k best so far. Of scores in no order about
// k ln(A / k) exceed it; these wait until they are k and are then cut back with the others. What follows is over k
// candidates: an exponential each, in double, and sums in a fixed order. In the place of thirty calls of microseconds.
#include "../common.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lavit::cpu {
namespace {

constexpr int64_t kLanes = 16;

template <class Real>
struct Candidate {
  Real score;
  int64_t id;
  double weight;
};

// The likelier first, of equal ones the lower id.
template <class Real>
bool likelier(const Candidate<Real>& a, const Candidate<Real>& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

template <class Real>
struct Draw {
  const Real* scores;     // (rows, allowed)
  const double* uniform;  // (rows,)
  int64_t* ids;           // (rows,)
  int64_t allowed, top_k;
  double top_p, temperature;

  void run(int64_t begin, int64_t end) const {
    std::vector<Candidate<Real>> found;
    for (int64_t row = begin; row < end; ++row) ids[row] = one(scores + row * allowed, uniform[row], found);
  }

  int64_t one(const Real* score, double u, std::vector<Candidate<Real>>& found) const {
    const Real best = greatest(score);
    if (!std::isfinite(best)) return -1;
    if (temperature == 0) return std::find(score, score + allowed, best) - score;
    collect(score, found);
    for (auto& c : found) c.weight = std::exp(static_cast<double>(c.score - best) / temperature);
    if (top_p < 1) keep_nucleus(found);
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    double sum = 0;
    for (auto& c : found) c.weight = sum += c.weight;
    const double wanted = u * sum;
    const auto place = std::upper_bound(found.begin(), found.end() - 1, wanted,
                                        [](double x, const auto& c) { return x < c.weight; });
    return place->id;
  }

  // Of a row; NaN if it holds one. In lanes, which the compiler makes vectors of.
  Real greatest(const Real* score) const {
    Real most[kLanes], nan[kLanes] = {};
    std::fill(most, most + kLanes, -std::numeric_limits<Real>::infinity());
    int64_t i = 0;
    for (; i + kLanes <= allowed; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const Real x = score[i + lane];
        most[lane] = x > most[lane] ? x : most[lane];
        nan[lane] += x == x ? Real(0) : Real(1);
      }
    }
    for (int64_t lane = 0; i < allowed; ++i, ++lane) {
      most[lane] = score[i] > most[lane] ? score[i] : most[lane];
      nan[lane] += score[i] == score[i] ? Real(0) : Real(1);
    }
    const bool has_nan = std::any_of(nan, nan + kLanes, [](Real n) { return n > 0; });
    return has_nan ? std::numeric_limits<Real>::quiet_NaN() : *std::max_element(most, most + kLanes);
  }

  // The top k of the scores above -inf.
  void collect(const Real* score, std::vector<Candidate<Real>>& found) const {
    const auto count = static_cast<size_t>(std::min(top_k, allowed));
    const auto cut = [&] {
      std::nth_element(found.begin(), found.begin() + count - 1, found.end(), likelier<Real>);
      found.resize(count);
    };
    found.clear();
    Real least = -std::numeric_limits<Real>::infinity();
    for (int64_t first = 0; first < allowed; first += kLanes) {
      const int64_t end = std::min(first + kLanes, allowed);
      int above = 0;
      for (int64_t i = first; i < end; ++i) above |= score[i] > least;
      if (!above) continue;
      for (int64_t i = first; i < end; ++i) {
        if (score[i] > least) found.push_back({score[i], i, 0});
      }
      if (found.size() >= 2 * count) {
        cut();
        least = found.back().score;
      }
    }
    if (found.size() > count) cut();
  }

  // The likeliest, until they have the share top_p of the weight.
  void keep_nucleus(std::vector<Candidate<Real>>& found) const {
    std::sort(found.begin(), found.end(), likelier<Real>);
    double all = 0, before = 0;
    for (const auto& c : found) all += c.weight;
    size_t kept = 0;
    for (; kept < found.size() && before < top_p * all; ++kept) before += found[kept].weight;
    found.resize(std::max<size_t>(kept, 1));
  }
};

}  // namespace

// scores (R, A) float32 or float64, uniform (R,) float64 -> (R,) int64. top_k >= 1, 0 < top_p <= 1, temperature >= 0.
Tensor draw_id(const Tensor& scores, const Tensor& uniform, int64_t top_k, double top_p, double temperature) {
  check_rows("scores", scores, 2);
  check_rows("uniform", uniform, 1);
  const int64_t rows = scores.size(0), allowed = scores.size(1);
  STD_TORCH_CHECK(scores.dim() == 2 && allowed >= 1, "scores: expected shape (R, A) with A >= 1");
  STD_TORCH_CHECK(uniform.dim() == 1 && uniform.size(0) == rows, "uniform: expected shape (", rows, ",)");
  STD_TORCH_CHECK(uniform.scalar_type() == ScalarType::Double, "uniform: expected float64");
  STD_TORCH_CHECK(top_k >= 1 && top_p > 0 && temperature >= 0, "top_k, top_p, temperature: out of range");
  Tensor ids = torch::stable::new_empty(scores, {rows}, ScalarType::Long);
  const auto go = [&](auto zero) {
    using Real = decltype(zero);
    const Draw<Real> body{static_cast<const Real*>(scores.const_data_ptr()),
                          static_cast<const double*>(uniform.const_data_ptr()),
                          data<int64_t>(ids), allowed, top_k, top_p, temperature};
    torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 50'000 / allowed),
                                [&](int64_t begin, int64_t end) { body.run(begin, end); });
  };
  switch (scores.scalar_type()) {
    case ScalarType::Float: go(0.0f); break;
    case ScalarType::Double: go(0.0); break;
    default: STD_TORCH_CHECK(false, "scores: expected float32 or float64");
  }
  return ids;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("draw_id", TORCH_BOX(&lavit::cpu::draw_id)); }
