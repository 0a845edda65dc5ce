// The device, the stream and the error check of a launch, without linking libtorch_cuda or libc10_cuda: a library
// that names them would not load on a CPU-only torch.
#pragma once

#include "../common.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <string>

namespace lavit::cuda {

inline void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

// torch's current stream on a device. The symbol is looked up in the libtorch_cuda that is already loaded; a CUDA
// tensor cannot exist without it.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(getter != nullptr, "libtorch_cuda.so with aoti_torch_get_current_cuda_stream is not loaded");
  void* stream = nullptr;
  STD_TORCH_CHECK(getter(device, &stream) == 0, "torch gave no CUDA stream for device ", device);
  return static_cast<cudaStream_t>(stream);
}

// Makes the device of a tensor current, and the former one again at the end.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) {
    const int device = tensor.get_device_index();
    check(cudaGetDevice(&former_), "cudaGetDevice");
    if (device != former_) {
      check(cudaSetDevice(device), "cudaSetDevice");
      switched_ = true;
    }
    stream = current_stream(device);
  }
  ~Launch() {
    if (switched_) cudaSetDevice(former_);
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;

  void done(const char* kernel) const { check(cudaGetLastError(), kernel); }

  cudaStream_t stream = nullptr;

 private:
  int former_ = 0;
  bool switched_ = false;
};

}  // namespace lavit::cuda
