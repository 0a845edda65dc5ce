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
