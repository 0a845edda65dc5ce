// pad and unpad. A sequence is contiguous on both sides, so its rows move in one copy a thread.
#include "rows.h"

namespace lavit::cpu {
namespace {

void move_padded(const Tensor&, const Rows& rows, const Padding& p, const Fill& fill) {
  const int64_t bytes = rows.bytes, length = p.length;
  torch::stable::parallel_for(0, p.batch * length, grain(bytes + 9), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / length, column = i % length;
      const int64_t stop = std::min(end, (b + 1) * length) - b * length;  // columns of this image in this chunk
      const int64_t n = clamped(length_of(p.cu, b), 0, length);
      const int64_t first = p.left ? length - n : 0;
      const int64_t a = std::clamp(first, column, stop), z = std::clamp(first + n, column, stop);  // real: [a, z)
      for (int64_t c = column; c < stop; ++c) {
        const bool real = c >= a && c < z;
        p.mask[b * length + c] = real;
        p.position[b * length + c] = real ? c - first : 0;
      }
      i = b * length + stop;
      if (bytes == 0) continue;
      const int64_t source = p.cu[b] + (a - first);
      const int64_t have = source < 0 ? 0 : std::clamp<int64_t>(p.total - source, 0, z - a);
      char* row = rows.to + b * length * bytes;
      fill_rows(row + column * bytes, fill, a - column, bytes);
      if (have > 0) copy_rows(row + a * bytes, rows.from + source * bytes, have, bytes);
      fill_rows(row + (a + have) * bytes, fill, stop - (a + have), bytes);
    }
  });
}

void move_unpadded(const Tensor&, const Rows& rows, const Padding& p) {
  const int64_t bytes = rows.bytes, length = p.length;
  torch::stable::parallel_for(0, p.total, grain(bytes), [&](int64_t begin, int64_t end) {
    int64_t b = owner(p.cu, p.batch, begin);
    for (int64_t t = begin; t < end;) {
      while (b < p.batch && t >= p.cu[b + 1]) ++b;
      const int64_t n = b < p.batch ? std::min<int64_t>(length_of(p.cu, b), length) : 0;
      const int64_t rank = b < p.batch ? t - p.cu[b] : 0;
      // Rows before the first offset are nobody's and end where it says, whatever part of them a thread has.
      const int64_t stop = b < p.batch ? std::min<int64_t>(end, rank < 0 ? p.cu[b] : p.cu[b + 1]) : end;
      const int64_t have = rank < 0 ? 0 : std::clamp<int64_t>(n - rank, 0, stop - t);
      const int64_t column = rank + (p.left ? length - n : 0);
      if (have > 0) copy_rows(rows.to + t * bytes, rows.from + (b * length + column) * bytes, have, bytes);
      std::memset(rows.to + (t + have) * bytes, 0, static_cast<size_t>((stop - t - have) * bytes));
      t = stop;
    }
  });
}

}  // namespace
}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("pad", TORCH_BOX(&lavit::pad<lavit::cpu::move_padded>));
  m.impl("unpad", TORCH_BOX(&lavit::unpad<lavit::cpu::move_unpadded>));
}
