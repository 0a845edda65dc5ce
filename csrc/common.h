// What the CPU and the CUDA kernels share: argument checks, sizes in bytes, the fill pattern.
//
// Only LibTorch's stable ABI is used, so that one library serves every torch from 2.10 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

namespace lavit {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_indices(const char* name, const Tensor& t, int64_t dim, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Int, name, ": expected int32");
  STD_TORCH_CHECK(t.dim() == dim, name, ": expected ", dim, " dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(),
                  name, ": expected the device of the rows");
}

inline void check_offsets(const Tensor& cu, int64_t batch, const Tensor& like) {
  check_indices("cu", cu, 1, like);
  STD_TORCH_CHECK(cu.size(0) == batch + 1, "cu: expected ", batch + 1, " offsets, got ", cu.size(0));
}

inline void check_rows(const char* name, const Tensor& t, int64_t min_dim) {
  STD_TORCH_CHECK(t.dim() >= min_dim, name, ": expected at least ", min_dim, " dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
}

// What the operators take, checked for both devices alike.

inline void check_partition(const Tensor& keep) {
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Bool && keep.dim() == 2 && keep.is_contiguous(),
                  "keep: expected a contiguous bool mask (B, N)");
  STD_TORCH_CHECK(keep.size(0) <= INT32_MAX && keep.numel() <= INT32_MAX,
                  "keep: expected at most 2^31 - 1 images and patches, got ", keep.size(0), " and ", keep.numel());
}

inline void check_total(int64_t total) { STD_TORCH_CHECK(total >= 0, "total: expected >= 0, got ", total); }

inline void check_pack(const Tensor& x, const Tensor& order, const Tensor& cu, int64_t total) {
  check_indices("order", order, 2, x);
  check_rows("x", x, 2);
  STD_TORCH_CHECK(x.size(0) == order.size(0) && x.size(1) == order.size(1), "x: expected the leading shape of order");
  check_offsets(cu, order.size(0), x);
  check_total(total);
}

inline void check_unpack(const Tensor& values, const Tensor& order, const Tensor& cu) {
  check_indices("order", order, 2, values);
  check_rows("values", values, 1);
  check_offsets(cu, order.size(0), values);
}

inline void check_pad(const Tensor& values, const Tensor& cu, int64_t length) {
  check_rows("values", values, 1);
  check_indices("cu", cu, 1, values);
  STD_TORCH_CHECK(cu.size(0) >= 1, "cu: expected at least one offset");
  STD_TORCH_CHECK(length >= 0, "length: expected >= 0, got ", length);
}

inline void check_unpad(const Tensor& padded, const Tensor& cu, int64_t total) {
  check_rows("padded", padded, 2);
  check_offsets(cu, padded.size(0), padded);
  check_total(total);
}

// Bytes of one row of t, whose first `leading` dimensions count rows.
inline int64_t row_bytes(const Tensor& t, int64_t leading) {
  int64_t bytes = static_cast<int64_t>(t.element_size());
  for (int64_t d = leading; d < t.dim(); ++d) bytes *= t.size(d);
  return bytes;
}

// The shape `first` followed by t's dimensions from `leading` on.
inline std::vector<int64_t> row_shape(std::vector<int64_t> first, const Tensor& t, int64_t leading) {
  for (int64_t d = leading; d < t.dim(); ++d) first.push_back(t.size(d));
  return first;
}

// 16 bytes that hold a whole number of copies of one element. Rows start at a whole element, so byte k of a
// filled row is bytes[k % 16], whatever the dtype.
struct Fill {
  alignas(16) unsigned char bytes[16] = {};
};

// `element` is a one-element CPU tensor: the kernels get its bytes as an argument, and no device is waited for.
inline Fill make_fill(const Tensor& element) {
  STD_TORCH_CHECK(element.is_cpu() && element.numel() == 1, "fill: expected a one-element CPU tensor");
  const size_t size = element.element_size();
  STD_TORCH_CHECK(size <= 16 && 16 % size == 0, "fill: expected an element of 1, 2, 4, 8 or 16 bytes, got ", size);
  Fill fill;
  for (size_t k = 0; k < 16; k += size) std::memcpy(fill.bytes + k, element.const_data_ptr(), size);
  return fill;
}

}  // namespace lavit
