// Runs operators of csrc/cuda on what comes in on standard input, and answers on standard output.
//
// In: lines of words, a tensor's bytes after its line.
//   case OPERATOR ORDER SEED PROCESSORS RACES       RACES 0: contents that the operator does not promise anything for
//   blocks RANGES FIRST LAST ...                    only these run
//   tensor DEVICE ELEMENT SHIFT DIMS SIZES...       DEVICE -1: CPU. ELEMENT: ScalarType. Then all bytes
//   sparse DEVICE ELEMENT PIECES DIMS SIZES...      zeros of which only the pieces take memory
//     OFFSET BYTES                                  a line for each piece, then its bytes
//   number N | none
//   read RESULT OFFSET BYTES                        only what is asked for is answered; without any, all results
//   go
// Out, for each case: `refused MESSAGE`, or `results N` and for each `tensor ELEMENT DIMS SIZES...` and its bytes, or
// with `read` the bytes alone.
#include "torch_stand_in.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>

namespace cuda_on_cpu {

std::map<std::string, Boxed>& operators() {
  static std::map<std::string, Boxed> table;
  return table;
}

namespace {

constexpr size_t kLarge = size_t{1} << 26;  // tensors from here on take memory only where they are touched
constexpr size_t kEdge = 1 << 16;

std::shared_ptr<char> allocate(size_t bytes) {
  if (bytes < kLarge) {
    // Exactly as large as asked for: AddressSanitizer guards the end.
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
    return {static_cast<char*>(memory), [](char* m) { std::free(m); }};
  }
  const size_t mapped = (bytes + kEdge - 1) / kEdge * kEdge + 2 * kEdge;
  void* memory = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(memory) + kEdge;
  mprotect(begin, mapped - 2 * kEdge, PROT_READ | PROT_WRITE);
  return {begin, [mapped](char* m) { munmap(m - kEdge, mapped); }};
}

std::string word() {
  std::string text;
  if (!(std::cin >> text)) throw std::runtime_error("the input ends early");
  return text;
}
int64_t number() { return std::stoll(word()); }

void bytes_into(void* to, size_t n) {
  std::cin.get();  // the end of the line
  std::cin.read(static_cast<char*>(to), static_cast<std::streamsize>(n));
}

std::vector<int64_t> numbers(int64_t n) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < n; ++i) all.push_back(number());
  return all;
}

Tensor read_tensor(bool sparse) {
  const auto device_index = static_cast<int>(number());
  const auto type = static_cast<torch::headeronly::ScalarType>(number());
  const int64_t shift_or_pieces = number();
  const auto sizes = numbers(number());
  if (!sparse) {
    Tensor tensor(sizes, type, device_index, static_cast<size_t>(shift_or_pieces), true);
    bytes_into(tensor.mutable_data_ptr(), tensor.bytes());
    return tensor;
  }
  Tensor tensor(sizes, type, device_index, 0, true);
  for (int64_t p = 0; p < shift_or_pieces; ++p) {
    const int64_t offset = number(), n = number();
    bytes_into(static_cast<char*>(tensor.mutable_data_ptr()) + offset, static_cast<size_t>(n));
  }
  return tensor;
}

void answer_case() {
  const std::string name = word();
  device = Device{};
  device.order = word();
  device.seed = static_cast<unsigned>(number());
  device.processors = static_cast<int>(number());
  device.races = number() != 0;
  std::vector<Value> values;
  std::vector<std::vector<int64_t>> reads;
  for (std::string what = word(); what != "go"; what = word()) {
    if (what == "tensor" || what == "sparse") {
      values.push_back({read_tensor(what == "sparse")});
    } else if (what == "number") {
      values.push_back({std::nullopt, number()});
    } else if (what == "none") {
      values.push_back({});
    } else if (what == "read") {
      reads.push_back(numbers(3));
    } else if (what == "blocks") {
      for (int64_t n = number(); n > 0; --n) {
        const int64_t first = number();
        device.blocks.push_back({static_cast<uint64_t>(first), static_cast<uint64_t>(number())});
      }
    } else {
      throw std::runtime_error("unknown: " + what);
    }
  }
  std::vector<Tensor> out;
  try {
    out = operators().at(name)(values);
  } catch (const std::runtime_error& error) {
    std::cout << "refused " << error.what() << "\n";
    return;
  }
  if (device.current != 0) fault("device %d is left current", device.current);
  std::cout << "results " << out.size() << "\n";
  for (const auto& r : reads) {
    const char* from = static_cast<const char*>(out.at(static_cast<size_t>(r[0])).const_data_ptr());
    std::cout.write(from + r[1], r[2]);
  }
  if (!reads.empty()) return;
  for (const Tensor& t : out) {
    std::cout << "tensor " << static_cast<int>(t.scalar_type()) << " " << t.dim();
    for (int64_t d = 0; d < t.dim(); ++d) std::cout << " " << t.size(d);
    std::cout << "\n";
    std::cout.write(static_cast<const char*>(t.const_data_ptr()), static_cast<std::streamsize>(t.bytes()));
  }
}

}  // namespace
}  // namespace cuda_on_cpu

namespace torch::stable {

Tensor::Tensor(std::vector<int64_t> sizes, ScalarType type, int device, size_t shift, bool written)
    : sizes_(std::move(sizes)), type_(type), device_(device) {
  if (bytes() == 0) return;
  auto memory = cuda_on_cpu::allocate(shift + bytes());
  data_ = memory.get() + shift;
  const bool on_gpu = device >= 0;
  if (on_gpu) cuda_on_cpu::add_memory(written ? "an input" : "a result", data_, bytes(), written);
  if (!written && bytes() < cuda_on_cpu::kLarge) std::memset(data_, 0xa5, bytes());
  memory_ = {memory.get(), [memory, at = data_](char*) { cuda_on_cpu::drop_memory(at); }};
}

}  // namespace torch::stable

int main() {
  std::ios::sync_with_stdio(false);
  std::string what;
  while (std::cin >> what) cuda_on_cpu::answer_case();
  std::cout.flush();
}
