// Stands in for LibTorch's stable ABI: what csrc uses of it, over memory that the record knows byte by byte.
#pragma once

#include "runtime.h"

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define STD_TORCH_CHECK(condition, ...) \
  do {                                  \
    if (!(condition)) ::cuda_on_cpu::refuse(__VA_ARGS__); \
  } while (false)

namespace cuda_on_cpu {

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace cuda_on_cpu

namespace torch::headeronly {
// The three that the operators look at, and for all others one of every size.
enum class ScalarType : int { One, Bool, Two, Int, Four, Long, Eight, Sixteen };
inline size_t size_of(ScalarType type) {
  constexpr size_t sizes[] = {1, 1, 2, 4, 4, 8, 8, 16};
  return sizes[static_cast<int>(type)];
}
}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

class Tensor {
 public:
  Tensor() = default;
  // device < 0: the CPU. `shift` bytes lie between the start of the memory, which is aligned to 64, and the tensor.
  Tensor(std::vector<int64_t> sizes, ScalarType type, int device, size_t shift, bool written);

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t d) const { return sizes_.at(static_cast<size_t>(d)); }
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t s : sizes_) n *= s;
    return n;
  }
  ScalarType scalar_type() const { return type_; }
  size_t element_size() const { return size_of(type_); }
  size_t bytes() const { return static_cast<size_t>(numel()) * element_size(); }
  bool is_contiguous() const { return true; }
  bool is_cpu() const { return device_ < 0; }
  bool is_cuda() const { return device_ >= 0; }
  int32_t get_device_index() const { return device_; }
  const void* const_data_ptr() const { return data_; }
  void* mutable_data_ptr() const { return data_; }

 private:
  std::vector<int64_t> sizes_;
  ScalarType type_ = ScalarType::One;
  int device_ = -1;
  std::shared_ptr<char> memory_;
  char* data_ = nullptr;  // of an empty tensor: null, as torch has it
};

inline Tensor new_empty(const Tensor& like, std::vector<int64_t> sizes, std::optional<ScalarType> type = std::nullopt) {
  return Tensor(std::move(sizes), type.value_or(like.scalar_type()), like.get_device_index(), 0, false);
}

}  // namespace torch::stable

namespace cuda_on_cpu {

using torch::stable::Tensor;

struct Value {
  std::optional<Tensor> tensor;
  int64_t number = 0;
};
using Boxed = std::function<std::vector<Tensor>(const std::vector<Value>&)>;
std::map<std::string, Boxed>& operators();

template <typename T>
std::decay_t<T> unboxed(const Value& value) {
  if constexpr (std::is_same_v<std::decay_t<T>, std::optional<Tensor>>) {
    return value.tensor;
  } else if constexpr (std::is_same_v<std::decay_t<T>, Tensor>) {
    return value.tensor.value();
  } else {
    return static_cast<T>(value.number);
  }
}

inline std::vector<Tensor> results(const Tensor& tensor) { return {tensor}; }
template <typename... T>
std::vector<Tensor> results(const std::tuple<T...>& tensors) {
  return std::apply([](const auto&... t) { return std::vector<Tensor>{t...}; }, tensors);
}

template <typename Result, typename... A, size_t... I>
std::vector<Tensor> call(Result (*f)(A...), const std::vector<Value>& values, std::index_sequence<I...>) {
  return results(f(unboxed<A>(values.at(I))...));
}

template <typename Result, typename... A>
Boxed boxed(Result (*f)(A...)) {
  return [f](const std::vector<Value>& values) { return call(f, values, std::index_sequence_for<A...>{}); };
}

struct Library {
  void impl(const char* name, Boxed boxed) { operators()[name] = std::move(boxed); }
};

}  // namespace cuda_on_cpu

#define TORCH_BOX(...) ::cuda_on_cpu::boxed(__VA_ARGS__)
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m)                           \
  static void register_kernels(::cuda_on_cpu::Library&);                     \
  static const bool registered = [] {                                        \
    ::cuda_on_cpu::Library here;                                             \
    register_kernels(here);                                                  \
    return true;                                                             \
  }();                                                                       \
  static void register_kernels(::cuda_on_cpu::Library& m)
