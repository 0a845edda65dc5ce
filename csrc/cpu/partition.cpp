// keep (B, N) -> order, cu_kept, cu_dropped. Threads share the images; the scan over the batch is serial: B adds.
#include "../common.h"

#include <algorithm>

namespace lavit::cpu {

std::tuple<Tensor, Tensor, Tensor> partition(const Tensor& keep) {
  check_partition(keep);
  const int64_t batch = keep.size(0), patches = keep.size(1);
  Tensor order = torch::stable::new_empty(keep, {batch, patches}, ScalarType::Int);
  Tensor cu_kept = torch::stable::new_empty(keep, {batch + 1}, ScalarType::Int);
  Tensor cu_dropped = torch::stable::new_empty(keep, {batch + 1}, ScalarType::Int);
  const auto* mask = static_cast<const uint8_t*>(keep.const_data_ptr());
  auto* place = static_cast<int32_t*>(order.mutable_data_ptr());
  auto* kept_end = static_cast<int32_t*>(cu_kept.mutable_data_ptr());
  auto* dropped_end = static_cast<int32_t*>(cu_dropped.mutable_data_ptr());

  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, patches));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* row = mask + b * patches;
      int32_t* out = place + b * patches;
      int32_t count = 0;
      for (int64_t p = 0; p < patches; ++p) count += row[p] != 0;
      int32_t next[2] = {count, 0};  // where the next dropped, the next kept patch goes
      for (int64_t p = 0; p < patches; ++p) out[next[row[p] != 0]++] = static_cast<int32_t>(p);
      kept_end[b + 1] = count;
    }
  });
  kept_end[0] = dropped_end[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    kept_end[b + 1] += kept_end[b];
    dropped_end[b + 1] = static_cast<int32_t>((b + 1) * patches - kept_end[b + 1]);
  }
  return {order, cu_kept, cu_dropped};
}

}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("partition", TORCH_BOX(&lavit::cpu::partition)); }
