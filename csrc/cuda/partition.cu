// keep (B, N) -> order, cu_kept, cu_dropped in one kernel launch.
//
// One block owns one image. It counts its kept patches, then places the patches tile by tile: within a tile a patch's
// rank among the kept ones is a ballot's popcount plus the counts of the warps before. The block that finishes last
// turns the counts of all images into offsets. Traffic for B = N = 256: 64 KB read twice (the second time from L1),
// 256 KB written; the launch itself is the cost.
#include "launch.h"

namespace lavit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Sum over the block of `value`, and with it the sum over all threads before this one.
__device__ int32_t exclusive_sum(int32_t value, int32_t* warp_sums, int32_t* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const int32_t before = __shfl_up_sync(~0u, inclusive, step);
    if (lane >= step) inclusive += before;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int32_t base = 0, sum = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) base += warp_sums[w];
    sum += warp_sums[w];
  }
  __syncthreads();  // the next call may overwrite warp_sums
  *total = sum;
  return base + inclusive - value;
}

__global__ void __launch_bounds__(kThreads)
    partition_kernel(const uint8_t* __restrict__ keep, int64_t batch, int64_t patches, int32_t* __restrict__ order,
                     int32_t* cu_kept, int32_t* cu_dropped, unsigned* finished) {
  __shared__ int32_t warp_sums[kWarps];
  __shared__ bool last;
  const int64_t b = blockIdx.x;
  const uint8_t* row = keep + b * patches;
  int32_t* out = order + b * patches;

  int32_t mine = 0, count = 0;
  for (int64_t p = threadIdx.x; p < patches; p += kThreads) mine += row[p] != 0;
  exclusive_sum(mine, warp_sums, &count);

  int32_t kept_before = 0;
  for (int64_t start = 0; start < patches; start += kThreads) {
    const int64_t p = start + threadIdx.x;
    const bool kept = p < patches && row[p] != 0;
    int32_t in_tile = 0;
    const int32_t rank = kept_before + exclusive_sum(kept, warp_sums, &in_tile);
    if (p < patches) out[kept ? rank : count + (p - rank)] = static_cast<int32_t>(p);
    kept_before += in_tile;
  }

  if (threadIdx.x == 0) {
    cu_kept[b + 1] = count;
    __threadfence();  // the count is visible before the ticket says so
    last = atomicAdd(finished, 1u) == static_cast<unsigned>(batch - 1);
  }
  __syncthreads();
  if (!last) return;

  __threadfence();
  int32_t carry = 0;
  for (int64_t start = 0; start < batch; start += kThreads) {
    const int64_t i = start + threadIdx.x;
    const int32_t n = i < batch ? __ldcg(cu_kept + i + 1) : 0;  // past L1: other blocks wrote it
    int32_t in_tile = 0;
    const int32_t end = carry + exclusive_sum(n, warp_sums, &in_tile) + n;
    if (i < batch) {
      cu_kept[i + 1] = end;
      cu_dropped[i + 1] = static_cast<int32_t>((i + 1) * patches - end);
    }
    carry += in_tile;
  }
  if (threadIdx.x == 0) cu_kept[0] = cu_dropped[0] = 0;
}

std::tuple<Tensor, Tensor, Tensor> partition(const Tensor& keep) {
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Bool && keep.dim() == 2 && keep.is_contiguous(),
                  "keep: expected a contiguous bool mask (B, N)");
  const int64_t batch = keep.size(0), patches = keep.size(1);
  const Launch launch(keep);
  Tensor order = torch::stable::new_empty(keep, {batch, patches}, ScalarType::Int);
  Tensor cu_kept = torch::stable::new_empty(keep, {batch + 1}, ScalarType::Int);
  Tensor cu_dropped = torch::stable::new_empty(keep, {batch + 1}, ScalarType::Int);
  Tensor finished = torch::stable::new_empty(keep, {1}, ScalarType::Int);
  auto* kept_end = static_cast<int32_t*>(cu_kept.mutable_data_ptr());
  auto* dropped_end = static_cast<int32_t*>(cu_dropped.mutable_data_ptr());
  auto* ticket = static_cast<unsigned*>(finished.mutable_data_ptr());
  if (batch == 0) {
    check(cudaMemsetAsync(kept_end, 0, sizeof(int32_t), launch.stream), "cudaMemsetAsync");
    check(cudaMemsetAsync(dropped_end, 0, sizeof(int32_t), launch.stream), "cudaMemsetAsync");
    return {order, cu_kept, cu_dropped};
  }
  STD_TORCH_CHECK(batch <= INT32_MAX, "keep: expected at most 2^31 - 1 images, got ", batch);
  check(cudaMemsetAsync(ticket, 0, sizeof(unsigned), launch.stream), "cudaMemsetAsync");
  partition_kernel<<<static_cast<unsigned>(batch), kThreads, 0, launch.stream>>>(
      static_cast<const uint8_t*>(keep.const_data_ptr()), batch, patches,
      static_cast<int32_t*>(order.mutable_data_ptr()), kept_end, dropped_end, ticket);
  launch.done("partition_kernel");
  return {order, cu_kept, cu_dropped};
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) { m.impl("partition", TORCH_BOX(&lavit::cuda::partition)); }
