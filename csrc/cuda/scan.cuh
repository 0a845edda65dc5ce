// A running sum over the threads of a block.
#pragma once

#include <cuda_runtime.h>

namespace lavit::cuda {

// Sum over the threads before this one, and in *total over all. Whoever calls it again finds warp_sums free.
template <int kWarps, typename T>
__device__ T exclusive_sum(T value, T* warp_sums, T* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T inclusive = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T before = __shfl_up_sync(~0u, inclusive, step);
    if (lane >= step) inclusive += before;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  T base = 0, sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const T of_warp = warp_sums[w];
    if (w < warp) base += of_warp;
    sum += of_warp;
  }
  __syncthreads();
  *total = sum;
  return base + inclusive - value;
}

}  // namespace lavit::cuda
