// pack and unpack on the GPU: two maps over the row mover. For rows of 1408 bfloat16 a row is 176 vectors of 16
// bytes, one warp each; finding the image costs log2(B) reads that stay in cache.
#include "rows.cuh"

namespace lavit::cuda {
namespace {

struct PackMap {
  const int32_t* order;
  const int32_t* cu;
  int64_t batch;
  int64_t patches;
  bool dropped;

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

struct UnpackMap {
  const int32_t* order;
  const int32_t* cu;
  int64_t patches;
  int64_t total;
  bool dropped;

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

Tensor pack(const Tensor& x, const Tensor& order, const Tensor& cu, int64_t total, bool dropped) {
  check_pack(x, order, cu, total);
  const int64_t batch = order.size(0), patches = order.size(1);
  const Launch launch(x);
  Tensor out = torch::stable::new_empty(x, row_shape({total}, x, 2));
  const int64_t bytes = row_bytes(x, 2);
  if (total == 0 || bytes == 0) return out;
  const PackMap map{static_cast<const int32_t*>(order.const_data_ptr()),
                    static_cast<const int32_t*>(cu.const_data_ptr()), batch, patches, dropped};
  move(launch, map, x.const_data_ptr(), out.mutable_data_ptr(), total, bytes, Fill{});
  return out;
}

Tensor unpack(const Tensor& values, const Tensor& order, const Tensor& cu, const Tensor& element, bool dropped) {
  check_unpack(values, order, cu);
  const int64_t batch = order.size(0), patches = order.size(1);
  const Launch launch(values);
  Tensor out = torch::stable::new_empty(values, row_shape({batch, patches}, values, 1));
  const int64_t bytes = row_bytes(values, 1);
  if (batch == 0 || patches == 0 || bytes == 0) return out;
  const UnpackMap map{static_cast<const int32_t*>(order.const_data_ptr()),
                      static_cast<const int32_t*>(cu.const_data_ptr()), patches, values.size(0), dropped};
  move(launch, map, values.const_data_ptr(), out.mutable_data_ptr(), batch * patches, bytes, make_fill(element));
  return out;
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) {
  m.impl("pack", TORCH_BOX(&lavit::cuda::pack));
  m.impl("unpack", TORCH_BOX(&lavit::cuda::unpack));
}
