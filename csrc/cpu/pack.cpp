// pack and unpack. Indices or offsets that do not fit give zero (pack) or fill (unpack) rows: nothing outside is touched.
#include "rows.h"

namespace lavit::cpu {
namespace {

void move_packed(const Tensor&, const Rows& rows, const Packing& p) {
  const int64_t bytes = rows.bytes;
  torch::stable::parallel_for(0, p.total, grain(bytes), [&](int64_t begin, int64_t end) {
    int64_t b = owner(p.cu, p.batch, begin);
    for (int64_t t = begin; t < end;) {
      while (b < p.batch && t >= p.cu[b + 1]) ++b;
      if (b == p.batch) {
        std::memset(rows.to + t * bytes, 0, static_cast<size_t>((end - t) * bytes));
        return;
      }
      const int64_t length = length_of(p.cu, b);
      const int64_t rank = t - p.cu[b] + (p.dropped ? p.patches - length : 0);
      const int64_t source = rank >= 0 && rank < p.patches ? p.order[b * p.patches + rank] : -1;
      if (source < 0 || source >= p.patches) {
        std::memset(rows.to + t * bytes, 0, static_cast<size_t>(bytes));
        ++t;
        continue;
      }
      // Patches that follow each other in the image follow each other in the packed batch: one copy.
      const int64_t limit = std::min({end - t, p.cu[b + 1] - t, p.patches - rank, p.patches - source});
      int64_t run = 1;
      while (run < limit && p.order[b * p.patches + rank + run] == source + run) ++run;
      copy_rows(rows.to + t * bytes, rows.from + (b * p.patches + source) * bytes, run, bytes);
      t += run;
    }
  });
}

void move_unpacked(const Tensor&, const Rows& rows, const Packing& p, const Fill& fill) {
  const int64_t bytes = rows.bytes;
  torch::stable::parallel_for(0, p.batch * p.patches, grain(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / p.patches, place = i % p.patches;
      const int64_t length = length_of(p.cu, b);
      const int64_t rank = p.dropped ? place - (p.patches - length) : place;
      const int64_t source = p.cu[b] + rank;
      const int64_t target = p.order[i];
      if (target < 0 || target >= p.patches) {
        ++i;
        continue;
      }
      const bool filled = rank < 0 || rank >= length || source < 0 || source >= p.total;
      int64_t limit = std::min({end - i, p.patches - place, p.patches - target});
      if (filled && rank < 0) limit = std::min(limit, -rank);
      if (!filled) limit = std::min({limit, length - rank, p.total - source});
      int64_t run = 1;
      while (run < limit && p.order[i + run] == target + run) ++run;
      char* there = rows.to + (b * p.patches + target) * bytes;
      if (filled) {
        fill_rows(there, fill, run, bytes);
      } else {
        copy_rows(there, rows.from + source * bytes, run, bytes);
      }
      i += run;
    }
  });
}

}  // namespace
}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("pack", TORCH_BOX(&lavit::pack<lavit::cpu::move_packed>));
  m.impl("unpack", TORCH_BOX(&lavit::unpack<lavit::cpu::move_unpacked>));
}
