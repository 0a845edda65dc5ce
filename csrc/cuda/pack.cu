// pack and unpack on the GPU: two maps over the row mover. For rows of 1408 bfloat16 a row is 176 vectors of 16
// bytes, one warp each; finding the image costs log2(B) reads that stay in cache.
#include "rows.cuh"

namespace lavit::cuda {
namespace {

struct PackMap : Packing {
  __device__ Move operator()(int64_t t, bool) const {
    const int64_t b = owner(cu, batch, t);
    if (b >= batch) return {-1, t};
    const int64_t length = length_of(cu, b);
    const int64_t rank = t - cu[b] + (dropped ? patches - length : 0);
    if (rank < 0 || rank >= patches) return {-1, t};
    const int64_t patch = order[b * patches + rank];
    return {patch >= 0 && patch < patches ? b * patches + patch : -1, t};
  }
};

struct UnpackMap : Packing {
  __device__ Move operator()(int64_t i, bool) const {
    const int64_t b = i / patches, p = i % patches;
    const int64_t length = length_of(cu, b);
    const int64_t rank = dropped ? p - (patches - length) : p;
    const int64_t row = cu[b] + rank;
    const int64_t patch = order[i];
    const bool held = rank >= 0 && rank < length && row >= 0 && row < total;
    return {held ? row : -1, patch >= 0 && patch < patches ? b * patches + patch : -1};
  }
};

void move_packed(const Tensor& x, const Rows& rows, const Packing& p) {
  move(x, PackMap{p}, rows, p.total, Fill{});
}

void move_unpacked(const Tensor& values, const Rows& rows, const Packing& p, const Fill& fill) {
  move(values, UnpackMap{p}, rows, p.batch * p.patches, fill);
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) {
  m.impl("pack", TORCH_BOX(&lavit::pack<lavit::cuda::move_packed>));
  m.impl("unpack", TORCH_BOX(&lavit::unpack<lavit::cuda::move_unpacked>));
}
