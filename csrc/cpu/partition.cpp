// keep (B, N) -> order, cu_kept, cu_dropped. Threads share the images; the scan over the batch is serial: B adds.
#include "../ragged.h"

#include <algorithm>

namespace lavit::cpu {
namespace {

void run(const Tensor&, const Partition& p) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.patches));
  torch::stable::parallel_for(0, p.batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const uint8_t* row = p.keep + b * p.patches;
      int32_t* out = p.order + b * p.patches;
      int32_t count = 0;
      for (int64_t i = 0; i < p.patches; ++i) count += row[i] != 0;
      int64_t kept = 0;  // no branch on the mask, which no predictor could foresee
      for (int64_t i = 0; i < p.patches; ++i) {
        const int64_t is_kept = row[i] != 0, dropped = count + i - kept;
        out[dropped + (kept - dropped) * is_kept] = static_cast<int32_t>(i);
        kept += is_kept;
      }
      p.cu_kept[b + 1] = count;
    }
  });
  p.cu_kept[0] = p.cu_dropped[0] = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    p.cu_kept[b + 1] += p.cu_kept[b];
    p.cu_dropped[b + 1] = static_cast<int32_t>((b + 1) * p.patches - p.cu_kept[b + 1]);
  }
}

}  // namespace
}  // namespace lavit::cpu

STABLE_TORCH_LIBRARY_IMPL(lavit_cpp, CPU, m) { m.impl("partition", TORCH_BOX(&lavit::partition<lavit::cpu::run>)); }
