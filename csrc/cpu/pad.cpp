// pad and unpad. A sequence is contiguous on both sides, so its rows move in one copy a thread.
#include "rows.h"

namespace lavit::cpu {

std::tuple<Tensor, Tensor, Tensor> pad(const Tensor& values, const Tensor& cu, int64_t length, bool left,
                                       const Tensor& element) {
  check_pad(values, cu, length);
  const int64_t batch = cu.size(0) - 1, total = values.size(0);
  const Fill fill = make_fill(element);

  Tensor padded = torch::stable::new_empty(values, row_shape({batch, length}, values, 1));
  Tensor mask = torch::stable::new_empty(values, {batch, length}, ScalarType::Bool);
  Tensor position = torch::stable::new_empty(values, {batch, length}, ScalarType::Long);
  const int64_t bytes = row_bytes(values, 1);
  if (batch == 0 || length == 0) return {padded, mask, position};
  const auto* from = static_cast<const char*>(values.const_data_ptr());
  auto* to = static_cast<char*>(padded.mutable_data_ptr());
  auto* is_row = static_cast<uint8_t*>(mask.mutable_data_ptr());
  auto* rank_of = static_cast<int64_t*>(position.mutable_data_ptr());
  const auto* begin_of = static_cast<const int32_t*>(cu.const_data_ptr());

  torch::stable::parallel_for(0, batch * length, grain(bytes + 9), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / length, column = i % length;
      const int64_t stop = std::min(end, (b + 1) * length) - b * length;  // columns of this image in this chunk
      const int64_t n = std::max<int64_t>(0, std::min<int64_t>(length_of(begin_of, b), length));
      const int64_t first = left ? length - n : 0;
      const int64_t a = std::clamp(first, column, stop), z = std::clamp(first + n, column, stop);  // real: [a, z)
      for (int64_t c = column; c < stop; ++c) {
        const bool real = c >= a && c < z;
        is_row[b * length + c] = real;
        rank_of[b * length + c] = real ? c - first : 0;
      }
      i = b * length + stop;
      if (bytes == 0) continue;
      const int64_t source = begin_of[b] + (a - first);
      const int64_t have = source < 0 ? 0 : std::clamp<int64_t>(total - source, 0, z - a);
      char* row = to + b * length * bytes;
      fill_rows(row + column * bytes, fill, a - column, bytes);
      if (have > 0) copy_rows(row + a * bytes, from + source * bytes, have, bytes);
      fill_rows(row + (a + have) * bytes, fill, stop - (a + have), bytes);
    }
  });
  return {padded, mask, position};
}

Tensor unpad(const Tensor& padded, const Tensor& cu, bool left, int64_t total) {
  check_unpad(padded, cu, total);
  const int64_t batch = padded.size(0), length = padded.size(1);
  Tensor out = torch::stable::new_empty(padded, row_shape({total}, padded, 2));
  const int64_t bytes = row_bytes(padded, 2);
  if (total == 0 || bytes == 0) return out;
  const auto* from = static_cast<const char*>(padded.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const auto* begin_of = static_cast<const int32_t*>(cu.const_data_ptr());

  torch::stable::parallel_for(0, total, grain(bytes), [&](int64_t begin, int64_t end) {
    int64_t b = owner(begin_of, batch, begin);
    for (int64_t t = begin; t < end;) {
      while (b < batch && t >= begin_of[b + 1]) ++b;
      const int64_t stop = b < batch ? std::min<int64_t>(end, begin_of[b + 1]) : end;
      const int64_t n = b < batch ? std::min<int64_t>(length_of(begin_of, b), length) : 0;
      const int64_t rank = b < batch ? t - begin_of[b] : 0;
      const int64_t have = rank < 0 ? 0 : std::clamp<int64_t>(n - rank, 0, stop - t);
      const int64_t column = rank + (left ? length - n : 0);
      if (have > 0) copy_rows(to + t * bytes, from + (b * length + column) * bytes, have, bytes);
      std::memset(to + (t + have) * bytes, 0, static_cast<size_t>((stop - t - have) * bytes));
      t = stop;
    }
  });
  return out;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("pad", TORCH_BOX(&lavit::cpu::pad));
  m.impl("unpad", TORCH_BOX(&lavit::cpu::unpad));
}
