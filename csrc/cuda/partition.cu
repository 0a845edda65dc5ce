// keep (B, N) -> order, cu_kept, cu_dropped.
//
// One block owns one image. It counts its kept patches, then places the patches tile by tile: within a tile a patch's
// rank among the kept ones is a ballot's popcount plus the counts of the warps before. Offsets need the counts of the
// images before as well. Of a moderate batch every block counts those itself, so that one launch is all there is and no
// block waits for another; of a larger one the block that finishes last adds the counts up. Traffic for B = N = 256:
// 64 KB read and read again from L1, 8 MB read from L2 by all blocks together (64 KB by the last), 256 KB written; the
// launch itself is the cost.
#include "../ragged.h"
#include "launch.h"
#include "scan.cuh"

namespace lavit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerProcessor = 4;  // left to itself, ptxas saves registers for eight and spills on sm_80

// This thread's share of the kept ones among the first n entries of a mask: 16 are read at a time from where addresses
// are whole vectors, single ones before and after.
__device__ int32_t share_of_kept(const uint8_t* __restrict__ keep, int64_t n) {
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uint64_t>(keep) % 16);
  const int64_t head = min(n, (16 - past) % 16), vectors = (n - head) / 16;
  const int64_t tail = head + 16 * vectors + threadIdx.x;
  const auto* vector = reinterpret_cast<const uint4*>(keep + head);
  int32_t mine = threadIdx.x < head && keep[threadIdx.x] != 0;
  if (tail < n) mine += keep[tail] != 0;
#pragma unroll 4
  for (int64_t v = threadIdx.x; v < vectors; v += kThreads) {
    const uint4 m = vector[v];
    mine += __popc(__vsetne4(m.x, 0)) + __popc(__vsetne4(m.y, 0)) + __popc(__vsetne4(m.z, 0)) +
            __popc(__vsetne4(m.w, 0));
  }
  return mine;
}

// The number of kept ones among the first n entries of a mask.
__device__ int32_t kept_among(const uint8_t* keep, int64_t n, int32_t* warp_sums) {
  int32_t count = 0;
  exclusive_sum<kWarps>(share_of_kept(keep, n), warp_sums, &count);
  return count;
}

// The order of an image of which `count` patches are kept.
__device__ void place(const uint8_t* __restrict__ row, int64_t patches, int32_t count, int32_t* __restrict__ out,
                      int32_t* warp_sums) {
  int32_t kept_before = 0;
  for (int64_t start = 0; start < patches; start += kThreads) {
    const int64_t p = start + threadIdx.x;
    const bool kept = p < patches && row[p] != 0;
    int32_t in_tile = 0;
    const int32_t rank = kept_before + exclusive_sum<kWarps>(int32_t{kept}, warp_sums, &in_tile);
    if (p < patches) out[kept ? rank : count + (p - rank)] = static_cast<int32_t>(p);
    kept_before += in_tile;
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    partition_kernel(const uint8_t* __restrict__ keep, int64_t patches, int32_t* __restrict__ order,
                     int32_t* __restrict__ cu_kept, int32_t* __restrict__ cu_dropped) {
  __shared__ int32_t warp_sums[kWarps];
  const int64_t b = blockIdx.x;
  const uint8_t* row = keep + b * patches;
  const int32_t before = kept_among(keep, b * patches, warp_sums);
  const int32_t count = kept_among(row, patches, warp_sums);
  place(row, patches, count, order + b * patches, warp_sums);
  if (threadIdx.x == 0) {
    cu_kept[b + 1] = before + count;
    cu_dropped[b + 1] = static_cast<int32_t>((b + 1) * patches - (before + count));
    if (b == 0) cu_kept[0] = cu_dropped[0] = 0;
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    partition_large_kernel(const uint8_t* __restrict__ keep, int64_t batch, int64_t patches,
                           int32_t* __restrict__ order, int32_t* cu_kept, int32_t* cu_dropped, unsigned* finished) {
  __shared__ int32_t warp_sums[kWarps];
  __shared__ bool last;
  const int64_t b = blockIdx.x;
  const uint8_t* row = keep + b * patches;
  const int32_t count = kept_among(row, patches, warp_sums);
  place(row, patches, count, order + b * patches, warp_sums);

  if (threadIdx.x == 0) {
    cu_kept[b + 1] = count;
    __threadfence();  // the count is visible before the ticket says so
    last = atomicAdd(finished, 1u) == static_cast<unsigned>(batch - 1);
    __threadfence();  // the other blocks' counts are visible to this thread, and past the barrier to its block
  }
  __syncthreads();
  if (!last) return;

  int32_t carry = 0;
  for (int64_t start = 0; start < batch; start += kThreads) {
    const int64_t i = start + threadIdx.x;
    const int32_t n = i < batch ? __ldcg(cu_kept + i + 1) : 0;  // past L1: other blocks wrote it
    int32_t in_tile = 0;
    const int32_t end = carry + exclusive_sum<kWarps>(n, warp_sums, &in_tile) + n;
    if (i < batch) {
      cu_kept[i + 1] = end;
      cu_dropped[i + 1] = static_cast<int32_t>((i + 1) * patches - end);
    }
    carry += in_tile;
  }
  if (threadIdx.x == 0) cu_kept[0] = cu_dropped[0] = 0;
}

// Whether counting the images before costs less than a second node on the stream: no block reads more than 128 KB for
// it, and all of them together no more than 32 MB.
bool counts_alone(int64_t batch, int64_t patches) {
  const int64_t all = batch * patches;
  return all <= int64_t{1} << 17 && batch * all <= int64_t{1} << 26;
}

void run(const Tensor& keep, const Partition& p) {
  const Launch launch(keep);
  const auto clear = [&](void* word) { check(cudaMemsetAsync(word, 0, 4, launch.stream), "cudaMemsetAsync"); };
  if (p.batch == 0) {
    clear(p.cu_kept);
    clear(p.cu_dropped);
    return;
  }
  const auto blocks = static_cast<unsigned>(p.batch);
  if (counts_alone(p.batch, p.patches)) {
    partition_kernel<<<blocks, kThreads, 0, launch.stream>>>(p.keep, p.patches, p.order, p.cu_kept, p.cu_dropped);
  } else {
    Tensor finished = torch::stable::new_empty(keep, {1}, ScalarType::Int);
    auto* ticket = data<unsigned>(finished);
    clear(ticket);
    partition_large_kernel<<<blocks, kThreads, 0, launch.stream>>>(p.keep, p.batch, p.patches, p.order, p.cu_kept,
                                                                   p.cu_dropped, ticket);
  }
  launch.done("partition");
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) { m.impl("partition", TORCH_BOX(&lavit::partition<lavit::cuda::run>)); }
