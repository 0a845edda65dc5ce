// The operators torch.ops.lavit_cpp.*. lavit.kernels calls them; what they mean is told there.
//
// All tensors are contiguous, keep is bool. Offsets and orders are int32, in bin_pack, which stays on the host, int64.
// Rows move as bytes, except in nearest_code.
#include "common.h"

STABLE_TORCH_LIBRARY(lavit_cpp, m) {
  m.def("partition(Tensor keep) -> (Tensor, Tensor, Tensor)");
  m.def("pack(Tensor x, Tensor order, Tensor cu, int total, bool dropped) -> Tensor");
  m.def("unpack(Tensor values, Tensor order, Tensor cu, Tensor fill, bool dropped) -> Tensor");
  m.def("pad(Tensor values, Tensor cu, int length, bool left, Tensor fill) -> (Tensor, Tensor, Tensor)");
  m.def("unpad(Tensor padded, Tensor cu, bool left, int total) -> Tensor");
  m.def("bin_pack(Tensor lengths, int budget, int window, bool in_order) -> (Tensor, Tensor, Tensor)");
  m.def("nearest_code(Tensor x, Tensor codes, Tensor bias, int width) -> (Tensor, Tensor)");
}
