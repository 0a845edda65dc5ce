// pad and unpad on the GPU: two maps over the row mover. The first thread of a cell also writes its mask and position.
#include "rows.cuh"

namespace lavit::cuda {
namespace {

struct PadMap : Padding {
  __device__ Move operator()(int64_t cell, bool first) const {
    const int64_t b = cell / length, column = cell % length;
    const int64_t n = clamped(length_of(cu, b), 0, length);
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

struct UnpadMap : Padding {
  __device__ Move operator()(int64_t t, bool) const {
    const int64_t b = owner(cu, batch, t);
    if (b >= batch) return {-1, t};
    const int64_t n = clamped(length_of(cu, b), 0, length);
    const int64_t rank = t - cu[b];
    if (rank < 0 || rank >= n) return {-1, t};
    return {b * length + rank + (left ? length - n : 0), t};
  }
};

void move_padded(const Tensor& values, const Rows& rows, const Padding& p, const Fill& fill) {
  move(values, PadMap{p}, rows, p.batch * p.length, fill);
}

void move_unpadded(const Tensor& padded, const Rows& rows, const Padding& p) {
  move(padded, UnpadMap{p}, rows, p.total, Fill{});
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) {
  m.impl("pad", TORCH_BOX(&lavit::pad<lavit::cuda::move_padded>));
  m.impl("unpad", TORCH_BOX(&lavit::unpad<lavit::cuda::move_unpadded>));
}
