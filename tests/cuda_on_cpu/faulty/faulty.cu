// Kernels with one fault each, and their right form: what the record of runtime/ must find, and must not.
#include "../common.h"
#include "launch.h"

#include <cuda_runtime.h>

namespace lavit::cuda {
namespace {

constexpr int kThreads = 64;

// Every thread takes its neighbour's number; the barriers are left out one by one.
__global__ void neighbours(const int32_t* in, int32_t* out, bool first, bool second) {
  __shared__ int32_t held[kThreads];
  for (int round = 0; round < 2; ++round) {
    held[threadIdx.x] = in[threadIdx.x];
    if (first) __syncthreads();
    out[threadIdx.x] = held[(threadIdx.x + 1) % kThreads];
    if (second) __syncthreads();
  }
}

// Within a warp a barrier of the warp is enough, across warps it is not.
__global__ void neighbours_of_warps(const int32_t* in, int32_t* out, int distance) {
  __shared__ int32_t held[kThreads];
  held[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = held[threadIdx.x ^ distance];
}

// The last of two blocks adds up what both have left.
__global__ void last_adds(int32_t* out, unsigned* finished, bool release, bool acquire) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    out[blockIdx.x] = 5;
    if (release) __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (acquire) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 1) out[2] = out[0] + out[1];
}

__global__ void both_blocks_write(int32_t* out) {
  if (threadIdx.x == 0) out[0] = 1;
}

__global__ void half_waits(int32_t* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void waits_apart(int32_t* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void half_a_warp_shuffles(int32_t* out) {
  int n = 0;
  if (threadIdx.x % 32 < 16) n = __shfl_up_sync(~0u, 1, 1);
  out[threadIdx.x] = n;
}

__global__ void reads_a_lane_outside(int32_t* out) {
  int n = 0;
  if (threadIdx.x < 16) n = __shfl_sync(0xffffu, 1, 20);
  out[threadIdx.x] = n;
}

__global__ void reads_unwritten_shared(int32_t* out) {
  __shared__ int32_t held[kThreads];
  if (threadIdx.x != 7) held[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = held[threadIdx.x ^ 1];
}

__global__ void shared_array_overflows(int32_t* out, int n) {
  __shared__ int32_t held[kThreads];
  held[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) held[n] = 1;
  out[threadIdx.x] = 1;
}

__global__ void touches(const int32_t* in, int32_t* out, int64_t read, int64_t write) {
  if (threadIdx.x == 0) out[write] = in[read];
}

__global__ void reads_results(int32_t* out) {
  if (threadIdx.x == 0) out[0] = out[1];
}

__global__ void misaligned(const char* in, int32_t* out) {
  const auto* vectors = reinterpret_cast<const uint4*>(in + 4);
  out[threadIdx.x] = static_cast<int32_t>(vectors[threadIdx.x % 2].x);
}

__global__ void votes(const int32_t* in, int32_t* out) {
  const unsigned odd = __ballot_sync(~0u, in[threadIdx.x] % 2);
  const int after = __shfl_down_sync(~0u, in[threadIdx.x], 3);
  const int any = __syncthreads_or(in[threadIdx.x] == 63);
  out[threadIdx.x] = static_cast<int32_t>(odd == 0xaaaaaaaau) + 2 * any + 4 * after;
}

Tensor run(const Tensor& in, const Tensor& host, int64_t which) {
  const Launch launch(in);
  Tensor result = torch::stable::new_empty(in, {kThreads}, ScalarType::Int);
  const auto* from = static_cast<const int32_t*>(in.const_data_ptr());
  auto* out = data<int32_t>(result);
  Tensor word = torch::stable::new_empty(in, {1}, ScalarType::Int);
  auto* ticket = data<unsigned>(word);
  check(cudaMemsetAsync(ticket, 0, 4, launch.stream), "cudaMemsetAsync");
  const auto stream = launch.stream;
  switch (which) {
    case 0: neighbours<<<1, kThreads, 0, stream>>>(from, out, true, true); break;
    case 1: neighbours<<<1, kThreads, 0, stream>>>(from, out, false, true); break;
    case 2: neighbours<<<1, kThreads, 0, stream>>>(from, out, true, false); break;
    case 3: neighbours_of_warps<<<1, kThreads, 0, stream>>>(from, out, 1); break;
    case 4: neighbours_of_warps<<<1, kThreads, 0, stream>>>(from, out, 32); break;
    case 5: last_adds<<<2, kThreads, 0, stream>>>(out, ticket, true, true); break;
    case 6: last_adds<<<2, kThreads, 0, stream>>>(out, ticket, false, true); break;
    case 7: last_adds<<<2, kThreads, 0, stream>>>(out, ticket, true, false); break;
    case 8: both_blocks_write<<<dim3(1, 2), kThreads, 0, stream>>>(out); break;
    case 9: half_waits<<<1, kThreads, 0, stream>>>(out); break;
    case 10: waits_apart<<<1, kThreads, 0, stream>>>(out); break;
    case 11: half_a_warp_shuffles<<<1, kThreads, 0, stream>>>(out); break;
    case 12: reads_a_lane_outside<<<1, kThreads, 0, stream>>>(out); break;
    case 13: reads_unwritten_shared<<<1, kThreads, 0, stream>>>(out); break;
    case 14: shared_array_overflows<<<1, kThreads, 0, stream>>>(out, kThreads); break;
    case 15: touches<<<1, kThreads, 0, stream>>>(from, out, in.numel(), 0); break;
    case 16: touches<<<1, kThreads, 0, stream>>>(from, out, 0, -1); break;
    case 17: touches<<<1, kThreads, 0, stream>>>(static_cast<const int32_t*>(host.const_data_ptr()), out, 0, 0); break;
    case 18: reads_results<<<1, kThreads, 0, stream>>>(out); break;
    case 19: misaligned<<<1, kThreads, 0, stream>>>(static_cast<const char*>(in.const_data_ptr()), out); break;
    case 20: neighbours<<<1, kThreads, 0, nullptr>>>(from, out, true, true); break;
    case 21: neighbours<<<dim3(1, 65536), kThreads, 0, stream>>>(from, out, true, true); break;
    default: votes<<<1, kThreads, 0, stream>>>(from, out); break;
  }
  launch.done("the kernel");
  return result;
}

}  // namespace
}  // namespace lavit::cuda

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CUDA, m) { m.impl("faulty", TORCH_BOX(&lavit::cuda::run)); }
