// pack and unpack. Indices or offsets that do not fit give zero (pack) or fill (unpack) rows: nothing outside is touched.
#include "rows.h"

namespace lavit::cpu {

Tensor pack(const Tensor& x, const Tensor& order, const Tensor& cu, int64_t total, bool dropped) {
  check_pack(x, order, cu, total);
  const int64_t batch = order.size(0), patches = order.size(1);
  Tensor out = torch::stable::new_empty(x, row_shape({total}, x, 2));
  const int64_t bytes = row_bytes(x, 2);
  if (total == 0 || bytes == 0) return out;
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const auto* patch = static_cast<const int32_t*>(order.const_data_ptr());
  const auto* begin_of = static_cast<const int32_t*>(cu.const_data_ptr());

  torch::stable::parallel_for(0, total, grain(bytes), [&](int64_t begin, int64_t end) {
    int64_t b = owner(begin_of, batch, begin);
    for (int64_t t = begin; t < end;) {
      while (b < batch && t >= begin_of[b + 1]) ++b;
      if (b == batch) {
        std::memset(to + t * bytes, 0, static_cast<size_t>((end - t) * bytes));
        return;
      }
      const int64_t length = length_of(begin_of, b);
      const int64_t rank = t - begin_of[b] + (dropped ? patches - length : 0);
      const int64_t source = rank >= 0 && rank < patches ? patch[b * patches + rank] : -1;
      if (source < 0 || source >= patches) {
        std::memset(to + t * bytes, 0, static_cast<size_t>(bytes));
        ++t;
        continue;
      }
      // Patches that follow each other in the image follow each other in the packed batch: one copy.
      const int64_t limit = std::min({end - t, begin_of[b + 1] - t, patches - rank, patches - source});
      int64_t run = 1;
      while (run < limit && patch[b * patches + rank + run] == source + run) ++run;
      copy_rows(to + t * bytes, from + (b * patches + source) * bytes, run, bytes);
      t += run;
    }
  });
  return out;
}

Tensor unpack(const Tensor& values, const Tensor& order, const Tensor& cu, const Tensor& element, bool dropped) {
  check_unpack(values, order, cu);
  const int64_t batch = order.size(0), patches = order.size(1), total = values.size(0);
  const Fill fill = make_fill(element);

  Tensor out = torch::stable::new_empty(values, row_shape({batch, patches}, values, 1));
  const int64_t bytes = row_bytes(values, 1);
  if (batch == 0 || patches == 0 || bytes == 0) return out;
  const auto* from = static_cast<const char*>(values.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const auto* patch = static_cast<const int32_t*>(order.const_data_ptr());
  const auto* begin_of = static_cast<const int32_t*>(cu.const_data_ptr());

  torch::stable::parallel_for(0, batch * patches, grain(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t b = i / patches, p = i % patches;
      const int64_t length = length_of(begin_of, b);
      const int64_t rank = dropped ? p - (patches - length) : p;
      const int64_t source = begin_of[b] + rank;
      const int64_t target = patch[i];
      if (target < 0 || target >= patches) {
        ++i;
        continue;
      }
      const bool filled = rank < 0 || rank >= length || source < 0 || source >= total;
      int64_t limit = std::min({end - i, patches - p, patches - target});
      if (filled && rank < 0) limit = std::min(limit, -rank);
      if (!filled) limit = std::min({limit, length - rank, total - source});
      int64_t run = 1;
      while (run < limit && patch[i + run] == target + run) ++run;
      char* place = to + (b * patches + target) * bytes;
      if (filled) {
        fill_rows(place, fill, run, bytes);
      } else {
        copy_rows(place, from + source * bytes, run, bytes);
      }
      i += run;
    }
  });
  return out;
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) {
  m.impl("pack", TORCH_BOX(&lavit::cpu::pack));
  m.impl("unpack", TORCH_BOX(&lavit::cpu::unpack));
}
