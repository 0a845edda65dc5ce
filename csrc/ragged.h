// partition, pack, unpack, pad and unpad: what their CPU and their CUDA kernels share: the checks of the arguments, the
// results, and what a kernel is told.
//
// An operator is `name<run>`: it checks, allocates and lets `run` fill the results, unless there are none. The first
// argument of `run` is a tensor on the device. Whatever orders and offsets hold, nothing outside is touched.
#pragma once

#include "common.h"

namespace lavit {

// Rows that move as bytes.
struct Rows {
  const char* from;
  char* to;
  int64_t bytes;  // of a row
};

// 16 bytes that hold a whole number of copies of one element. Rows start at a whole element, so byte k of a
// filled row is bytes[k % 16], whatever the dtype.
struct Fill {
  alignas(16) unsigned char bytes[16] = {};
};

// `element` is a one-element CPU tensor: the kernels get its bytes as an argument, and no device is waited for.
inline Fill make_fill(const Tensor& element) {
  STD_TORCH_CHECK(element.is_cpu() && element.numel() == 1, "fill: expected a one-element CPU tensor");
  const size_t size = element.element_size();
  STD_TORCH_CHECK(size <= 16 && 16 % size == 0, "fill: expected an element of 1, 2, 4, 8 or 16 bytes, got ", size);
  Fill fill;
  for (size_t k = 0; k < 16; k += size) std::memcpy(fill.bytes + k, element.const_data_ptr(), size);
  return fill;
}

struct Packing {
  const int32_t *order, *cu;
  int64_t batch, patches;
  int64_t total;  // packed rows
  bool dropped;
};

struct Padding {
  const int32_t* cu;
  int64_t batch, length;
  int64_t total;  // packed rows
  bool left;
  bool* mask = nullptr;         // these two for pad alone
  int64_t* position = nullptr;
};

struct Partition {
  const uint8_t* keep;
  int64_t batch, patches;
  int32_t *order, *cu_kept, *cu_dropped;
};

// Rows of sequence b, negative where offsets fall; in 64 bits, since offsets that do not fit may be far apart.
LAVIT_BOTH inline int64_t length_of(const int32_t* cu, int64_t b) { return static_cast<int64_t>(cu[b + 1]) - cu[b]; }

// Image that owns packed row t: the first b with t < cu[b + 1], or `batch` beyond the end.
LAVIT_BOTH inline int64_t owner(const int32_t* cu, int64_t batch, int64_t t) {
  return first_where(int64_t{0}, batch, [&](int64_t b) { return cu[b + 1] > t; });
}

inline const int32_t* indices(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }

inline void check_offsets(const Tensor& cu, int64_t batch, const Tensor& like) {
  check_indices("cu", cu, 1, like);
  STD_TORCH_CHECK(cu.size(0) == batch + 1, "cu: expected ", batch + 1, " offsets, got ", cu.size(0));
}

inline void check_total(int64_t total) { STD_TORCH_CHECK(total >= 0, "total: expected >= 0, got ", total); }

// A tensor (first..., row), where a row is what t's dimensions from `leading` on are.
inline Tensor new_rows(std::vector<int64_t> first, const Tensor& t, int64_t leading) {
  for (int64_t d = leading; d < t.dim(); ++d) first.push_back(t.size(d));
  return torch::stable::new_empty(t, first);
}

inline Rows moved(const Tensor& from, const Tensor& to, int64_t leading) {
  int64_t bytes = static_cast<int64_t>(from.element_size());
  for (int64_t d = leading; d < from.dim(); ++d) bytes *= from.size(d);
  return {static_cast<const char*>(from.const_data_ptr()), data<char>(to), bytes};
}

template <auto run>
std::tuple<Tensor, Tensor, Tensor> partition(const Tensor& keep) {
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Bool && keep.dim() == 2 && keep.is_contiguous(),
                  "keep: expected a contiguous bool mask (B, N)");
  STD_TORCH_CHECK(keep.size(0) <= INT32_MAX && keep.numel() <= INT32_MAX,
                  "keep: expected at most 2^31 - 1 images and patches, got ", keep.size(0), " and ", keep.numel());
  const int64_t batch = keep.size(0), patches = keep.size(1);
  const auto integers = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(keep, shape, ScalarType::Int);
  };
  Tensor order = integers({batch, patches}), cu_kept = integers({batch + 1}), cu_dropped = integers({batch + 1});
  run(keep, Partition{static_cast<const uint8_t*>(keep.const_data_ptr()), batch, patches, data<int32_t>(order),
                      data<int32_t>(cu_kept), data<int32_t>(cu_dropped)});
  return {order, cu_kept, cu_dropped};
}

template <auto run>
Tensor pack(const Tensor& x, const Tensor& order, const Tensor& cu, int64_t total, bool dropped) {
  check_indices("order", order, 2, x);
  check_rows("x", x, 2);
  STD_TORCH_CHECK(x.size(0) == order.size(0) && x.size(1) == order.size(1), "x: expected the leading shape of order");
  check_offsets(cu, order.size(0), x);
  check_total(total);
  Tensor out = new_rows({total}, x, 2);
  const Rows rows = moved(x, out, 2);
  const Packing p{indices(order), indices(cu), order.size(0), order.size(1), total, dropped};
  if (total > 0 && rows.bytes > 0) run(x, rows, p);
  return out;
}

template <auto run>
Tensor unpack(const Tensor& values, const Tensor& order, const Tensor& cu, const Tensor& element, bool dropped) {
  check_indices("order", order, 2, values);
  check_rows("values", values, 1);
  check_offsets(cu, order.size(0), values);
  const Fill fill = make_fill(element);
  Tensor out = new_rows({order.size(0), order.size(1)}, values, 1);
  const Rows rows = moved(values, out, 1);
  const Packing p{indices(order), indices(cu), order.size(0), order.size(1), values.size(0), dropped};
  if (order.numel() > 0 && rows.bytes > 0) run(values, rows, p, fill);
  return out;
}

// Rows of no bytes still have a mask and a position, so the kernel runs for them too.
template <auto run>
std::tuple<Tensor, Tensor, Tensor> pad(const Tensor& values, const Tensor& cu, int64_t length, bool left,
                                       const Tensor& element) {
  check_rows("values", values, 1);
  check_indices("cu", cu, 1, values);
  STD_TORCH_CHECK(cu.size(0) >= 1, "cu: expected at least one offset");
  STD_TORCH_CHECK(length >= 0, "length: expected >= 0, got ", length);
  const Fill fill = make_fill(element);
  const int64_t batch = cu.size(0) - 1;
  Tensor padded = new_rows({batch, length}, values, 1);
  Tensor mask = torch::stable::new_empty(values, {batch, length}, ScalarType::Bool);
  Tensor position = torch::stable::new_empty(values, {batch, length}, ScalarType::Long);
  const Padding p{indices(cu), batch, length, values.size(0), left, data<bool>(mask), data<int64_t>(position)};
  if (batch > 0 && length > 0) run(values, moved(values, padded, 1), p, fill);
  return {padded, mask, position};
}

template <auto run>
Tensor unpad(const Tensor& padded, const Tensor& cu, bool left, int64_t total) {
  check_rows("padded", padded, 2);
  check_offsets(cu, padded.size(0), padded);
  check_total(total);
  Tensor out = new_rows({total}, padded, 2);
  const Rows rows = moved(padded, out, 2);
  if (total > 0 && rows.bytes > 0) run(padded, rows, Padding{indices(cu), padded.size(0), padded.size(1), total, left});
  return out;
}

}  // namespace lavit
