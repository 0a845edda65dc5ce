// code_statistics: every row is added to its code's sum, in the rows' order.
//
// n x D numbers are read once; the sums (2 MB for K = 16384, D = 32) stay in the cache. A thread owns a range of codes
// and looks at all ids, so that the order of a sum, and with it every bit, is the same for any number of threads.
#include "../common.h"

#include <algorithm>

namespace lavit::cpu {
namespace {

template <class Real>
struct Statistics {
  const Real* x;
  const int64_t* ids;
  int64_t n, dim, num_codes;
  Real *counts, *sums;

  void run(int64_t begin, int64_t end) const {
    std::fill(sums + begin * dim, sums + end * dim, Real(0));
    std::vector<int64_t> count(static_cast<size_t>(end - begin));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t id = ids[i];
      if (id < begin || id >= end) continue;
      ++count[static_cast<size_t>(id - begin)];
      Real* sum = sums + id * dim;
      const Real* row = x + i * dim;
      for (int64_t d = 0; d < dim; ++d) sum[d] += row[d];
    }
    for (int64_t k = begin; k < end; ++k) counts[k] = static_cast<Real>(count[static_cast<size_t>(k - begin)]);
  }
};

}  // namespace

// x (n, D) float32 or float64, ids (n,) int64 -> counts (K,), sums (K, D); ids outside 0 .. K - 1 count for nothing.
std::tuple<Tensor, Tensor> code_statistics(const Tensor& x, const Tensor& ids, int64_t num_codes) {
  check_rows("x", x, 2);
  check_rows("ids", ids, 1);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "x: expected float32 or float64");
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long && ids.size(0) == x.size(0), "ids: expected (n,) int64");
  STD_TORCH_CHECK(x.dim() == 2 && num_codes >= 1, "x: expected (n, D), and at least one code");
  const int64_t n = x.size(0), dim = x.size(1);
  Tensor counts = torch::stable::new_empty(x, {num_codes}), sums = torch::stable::new_empty(x, {num_codes, dim});
  const auto go = [&](auto zero) {
    using Real = decltype(zero);
    const Statistics<Real> s{static_cast<const Real*>(x.const_data_ptr()),
                             static_cast<const int64_t*>(ids.const_data_ptr()),
                             n, dim, num_codes, data<Real>(counts), data<Real>(sums)};
    // As many numbers for a thread as are worth its start: those of the sums and, if ids are spread, of the rows.
    const int64_t numbers = (n + num_codes) * std::max<int64_t>(1, dim);
    const int64_t grain = std::max<int64_t>(1, num_codes * std::min<int64_t>(32768, numbers) / numbers);
    torch::stable::parallel_for(0, num_codes, grain, [&](int64_t begin, int64_t end) { s.run(begin, end); });
  };
  x.scalar_type() == ScalarType::Float ? go(0.0f) : go(0.0);
  return {counts, sums};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("code_statistics", TORCH_BOX(&lavit::cpu::code_statistics)); }
