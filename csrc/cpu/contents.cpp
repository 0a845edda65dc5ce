// Whether offsets, orders and ids fit, before a kernel follows them. What is wrong is told by lavit/kernels/checks.py,
// whose law this is; here only that all is well is found out, in a nanosecond a number or less.
#include "../common.h"

namespace lavit::cpu {
namespace {

// The last offset, or -1 if they do not start at 0, fall, end beyond `total`, or one sequence has more than `longest`.
int64_t offsets_end(const Tensor& cu, int64_t longest, int64_t total) {
  check_indices("cu", cu, 1, cu);
  STD_TORCH_CHECK(cu.size(0) >= 1, "cu: expected at least one offset");
  const auto* offsets = static_cast<const int32_t*>(cu.const_data_ptr());
  const int64_t batch = cu.size(0) - 1;
  bool fits = offsets[0] == 0 && offsets[batch] <= total;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = static_cast<int64_t>(offsets[b + 1]) - offsets[b];
    fits = fits && length >= 0 && length <= longest;
  }
  return fits ? offsets[batch] : -1;
}

// Whether every row of (B, N) is a permutation of 0..N-1: N numbers in range of which none comes twice.
bool order_fits(const Tensor& order) {
  check_indices("order", order, 2, order);
  const int64_t batch = order.size(0), n = order.size(1);
  const auto* row = static_cast<const int32_t*>(order.const_data_ptr());
  std::vector<int64_t> seen_in(static_cast<size_t>(n), -1);  // the last row that has the number
  for (int64_t b = 0; b < batch; ++b, row += n) {
    for (int64_t r = 0; r < n; ++r) {
      const int64_t index = row[r];
      if (index < 0 || index >= n || seen_in[static_cast<size_t>(index)] == b) return false;
      seen_in[static_cast<size_t>(index)] = b;
    }
  }
  return true;
}

// Both in one call: the last offset of packed rows, or -1 if the order or the offsets do not fit.
int64_t packing_end(const Tensor& order, const Tensor& cu, int64_t total) {
  return order_fits(order) ? offsets_end(cu, order.size(1), total) : -1;
}

// Sums that every machine has in vectors: a number outside makes one of two differences negative, and if that one
// wraps around, the other. In a range of more than half of int64 one inside may do so too: false then says nothing.
template <typename Number>
bool all_within(const Number* x, int64_t n, int64_t least, int64_t most) {
  const auto low = static_cast<uint64_t>(least), high = static_cast<uint64_t>(most);
  uint64_t negative = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto number = static_cast<uint64_t>(static_cast<int64_t>(x[i]));
    negative |= (number - low) | (high - number);
  }
  return negative >> 63 == 0;
}

// True if all numbers (n,), int64 or int32, are least to most.
bool range_fits(const Tensor& x, int64_t least, int64_t most) {
  const bool wide = x.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || x.scalar_type() == ScalarType::Int, "x: expected int64 or int32");
  STD_TORCH_CHECK(least <= most, "most: expected at least ", least, ", got ", most);
  check_rows("x", x, 1);
  return wide ? all_within(static_cast<const int64_t*>(x.const_data_ptr()), x.numel(), least, most)
              : all_within(static_cast<const int32_t*>(x.const_data_ptr()), x.numel(), least, most);
}

}  // namespace
}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("offsets_end", TORCH_BOX(&lavit::cpu::offsets_end));
  m.impl("order_fits", TORCH_BOX(&lavit::cpu::order_fits));
  m.impl("packing_end", TORCH_BOX(&lavit::cpu::packing_end));
  m.impl("range_fits", TORCH_BOX(&lavit::cpu::range_fits));
}
