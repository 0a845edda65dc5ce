// pad and unpad on the GPU: two maps over the row mover. The first thread of a cell also writes its mask and position.
#include "rows.cuh"

namespace lavit::cuda {
namespace {

__device__ inline int64_t cut_length(const int32_t* cu, int64_t b, int64_t length) {
  const int64_t n = length_of(cu, b);
  return n < 0 ? 0 : (n < length ? n : length);
}

struct PadMap {
  const int32_t* cu;
  bool* mask;
  int64_t* position;
  int64_t length;
  int64_t total;
  bool left;

  __device__ Move operator()(int64_t cell, bool first) const {
    const int64_t b = cell / length, column = cell % length;
    const int64_t n = cut_length(cu, b, length);
    const int64_t rank = column - (left ? length - n : 0);
    const bool real = rank >= 0 && rank < n;
    if (first) {
      mask[cell] = real;
      position[cell] = real ? rank : 0;
    }
    const int64_t row = cu[b] + rank;
    return {real && row >= 0 && row < total ? row : -1, cell};
  }
};

struct UnpadMap {
  const int32_t* cu;
  int64_t batch;
  int64_t length;
  bool left;

  __device__ Move operator()(int64_t t, bool) const {
    const int64_t b = owner(cu, batch, t);
    if (b >= batch) return {-1, t};
    const int64_t n = cut_length(cu, b, length);
    const int64_t rank = t - cu[b];
    if (rank < 0 || rank >= n) return {-1, t};
    return {b * length + rank + (left ? length - n : 0), t};
  }
};

std::tuple<Tensor, Tensor, Tensor> pad(const Tensor& values, const Tensor& cu, int64_t length, bool left,
                                       const Tensor& element) {
  check_pad(values, cu, length);
  const int64_t batch = cu.size(0) - 1;

  const Launch launch(values);
  Tensor padded = torch::stable::new_empty(values, row_shape({batch, length}, values, 1));
  Tensor mask = torch::stable::new_empty(values, {batch, length}, ScalarType::Bool);
  Tensor position = torch::stable::new_empty(values, {batch, length}, ScalarType::Long);
  // Rows of no bytes still have a mask and a position, so the kernel runs for them too.
  const PadMap map{static_cast<const int32_t*>(cu.const_data_ptr()), static_cast<bool*>(mask.mutable_data_ptr()),
                   static_cast<int64_t*>(position.mutable_data_ptr()), length, values.size(0), left};
  move(launch, map, values.const_data_ptr(), padded.mutable_data_ptr(), batch * length, row_bytes(values, 1),
       make_fill(element));
  return {padded, mask, position};
}

Tensor unpad(const Tensor& padded, const Tensor& cu, bool left, int64_t total) {
  check_unpad(padded, cu, total);
  const int64_t batch = padded.size(0), length = padded.size(1);
  const Launch launch(padded);
  Tensor out = torch::stable::new_empty(padded, row_shape({total}, padded, 2));
  const int64_t bytes = row_bytes(padded, 2);
  if (total == 0 || bytes == 0) return out;
  const UnpadMap map{static_cast<const int32_t*>(cu.const_data_ptr()), batch, length, left};
  move(launch, map, padded.const_data_ptr(), out.mutable_data_ptr(), total, bytes, Fill{});
  return out;
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) {
  m.impl("pad", TORCH_BOX(&lavit::cuda::pad));
  m.impl("unpad", TORCH_BOX(&lavit::cuda::unpad));
}
