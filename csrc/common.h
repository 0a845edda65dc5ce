// What the CPU and the CUDA kernels share: argument checks, and arithmetic of offsets.
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

#ifdef __CUDACC__
#define LAVIT_BOTH __host__ __device__
#else
#define LAVIT_BOTH
#endif

#define LAVIT_INLINE inline __attribute__((always_inline))  // so that it is compiled for its caller's instruction set

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

inline void check_rows(const char* name, const Tensor& t, int64_t min_dim) {
  STD_TORCH_CHECK(t.dim() >= min_dim, name, ": expected at least ", min_dim, " dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor");
}

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

LAVIT_BOTH inline int64_t clamped(int64_t x, int64_t low, int64_t high) { return x < low ? low : (x < high ? x : high); }

// The first i in [low, high) for which `beyond(i)` holds, or high; beyond is false, then true.
template <typename Index, typename Beyond>
LAVIT_BOTH Index first_where(Index low, Index high, const Beyond& beyond) {
  while (low < high) {
    const Index middle = low + (high - low) / 2;
    if (beyond(middle)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace lavit
