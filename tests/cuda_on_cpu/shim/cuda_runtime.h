// Stands in for CUDA's header: what csrc/cuda uses of it, on the CPU. Whatever it lacks does not compile.
#pragma once

#include "runtime.h"

#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks run one after the other, so one instance serves all; the section tells the runtime where shared memory is.
#define __shared__ static __attribute__((section("cuda_shared")))

#define threadIdx (::cuda_on_cpu::thread_index())
#define blockIdx (::cuda_on_cpu::block_index())
#define gridDim (::cuda_on_cpu::grid_size())
#define blockDim (::cuda_on_cpu::block_size())

#define CUDA_ON_CPU_TEXT(x) #x
#define CUDA_ON_CPU_LINE(x) CUDA_ON_CPU_TEXT(x)
#define CUDA_ON_CPU_HERE __FILE__ ":" CUDA_ON_CPU_LINE(__LINE__)

#define __syncthreads() (::cuda_on_cpu::barrier(CUDA_ON_CPU_HERE, false))
#define __syncthreads_or(vote) (::cuda_on_cpu::barrier(CUDA_ON_CPU_HERE, (vote) != 0))
#define __syncwarp() (::cuda_on_cpu::sync_warp(CUDA_ON_CPU_HERE))
#define __threadfence() (::cuda_on_cpu::fence())
#define __shfl_sync(mask, value, lane) (::cuda_on_cpu::shuffle(CUDA_ON_CPU_HERE, mask, value, lane))
#define __shfl_up_sync(mask, value, delta) \
  (::cuda_on_cpu::shuffle(CUDA_ON_CPU_HERE, mask, value, ::cuda_on_cpu::lane_before(delta)))
#define __shfl_down_sync(mask, value, delta) \
  (::cuda_on_cpu::shuffle(CUDA_ON_CPU_HERE, mask, value, ::cuda_on_cpu::lane_after(delta)))
#define __ballot_sync(mask, vote) (::cuda_on_cpu::ballot(CUDA_ON_CPU_HERE, mask, (vote) != 0))
#define __any_sync(mask, vote) (__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) (__ballot_sync(mask, vote) == (mask))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

// As CUDA's: of two numbers of one type.
template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T max(T a, T b) { return a < b ? b : a; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }

// 1 in every byte in which a and b differ.
inline unsigned __vsetne4(unsigned a, unsigned b) {
  unsigned out = 0;
  for (int k = 0; k < 32; k += 8) out |= static_cast<unsigned>(((a ^ b) >> k & 0xffu) != 0) << k;
  return out;
}

template <typename T>
T __ldcg(const T* address) { return *address; }

inline int atomicAdd(int* at, int x) { return static_cast<int>(cuda_on_cpu::atomic_add(at, static_cast<uint32_t>(x))); }
inline unsigned atomicAdd(unsigned* at, unsigned x) { return cuda_on_cpu::atomic_add(at, x); }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_cpu::device.current;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  cuda_on_cpu::device.current = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = cuda_on_cpu::device.processors;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
  const int error = cuda_on_cpu::device.error;
  cuda_on_cpu::device.error = 0;
  return static_cast<cudaError_t>(error);
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t n, cudaStream_t stream) {
  cuda_on_cpu::check_stream(stream);
  std::memset(to, byte, n);
  cuda_on_cpu::written_by_host(to, n);
  return cudaSuccess;
}

namespace cuda_on_cpu {

template <typename T>
T shuffle(const char* site, unsigned mask, T value, int from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(site, mask, bits, from);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// kernel<<<grid, block, shared, stream>>>(arguments) becomes launch{grid, block, shared, stream}.run(name, kernel, ...).
struct launch {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;

  template <typename... Parameters, typename... Arguments>
  void run(const char* name, void (*kernel)(Parameters...), const Arguments&... arguments) const {
    std::tuple<std::decay_t<Parameters>...> values(arguments...);
    check_stream(stream);
    if (shared != 0) fault("%s asks for dynamic shared memory, which this stand-in has not", name);
    run_blocks(name, grid, block, [&] { std::apply(kernel, values); });
  }
};

}  // namespace cuda_on_cpu
