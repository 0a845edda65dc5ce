// The operators torch.ops.lavit_cpp.*. lavit.kernels calls them; what they mean is told there.
//
// All tensors are contiguous, keep is bool. Offsets and orders are int32, in bin_pack, which stays on the host, int64.
// Rows move as bytes where nothing is computed. The numbers of assemble_sequences are int64 or int32.
#include "common.h"

STABLE_TORCH_LIBRARY(lavit_cpp, m) {
  m.def("partition(Tensor keep) -> (Tensor, Tensor, Tensor)");
  m.def("pack(Tensor x, Tensor order, Tensor cu, int total, bool dropped) -> Tensor");
  m.def("unpack(Tensor values, Tensor order, Tensor cu, Tensor fill, bool dropped) -> Tensor");
  m.def("pad(Tensor values, Tensor cu, int length, bool left, Tensor fill) -> (Tensor, Tensor, Tensor)");
  m.def("unpad(Tensor padded, Tensor cu, bool left, int total) -> Tensor");
  m.def(
      "assemble_sequences(Tensor text, Tensor cu_text, Tensor images, Tensor cu_images, Tensor segments, "
      "Tensor cu_segments, Tensor? loss, int kind_loss, int begin_id, int end_id, int first_code_id, int pad_id, "
      "int ignore_index, int total) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("bin_pack(Tensor lengths, int budget, int window, bool in_order) -> (Tensor, Tensor, Tensor)");
  m.def("offsets_end(Tensor cu, int longest, int total) -> int");
  m.def("order_fits(Tensor order) -> bool");
  m.def("packing_end(Tensor order, Tensor cu, int total) -> int");
  m.def("range_fits(Tensor x, int least, int most) -> bool");
  m.def(
      "varlen_attention(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, Tensor? key_weight, bool causal, "
      "float scale, int width) -> (Tensor, Tensor)");
  m.def(
      "varlen_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_q, "
      "Tensor cu_k, Tensor? key_weight, bool causal, float scale, int width) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gumbel_select(Tensor scores, Tensor? noise, Tensor? seeds, float tau, int min_keep, int width) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, bool)");
  m.def("gumbel_select_backward(Tensor? grad_keep, Tensor? grad_prob, Tensor prob, float tau) -> Tensor");
  m.def(
      "policy_weights(Tensor(a!) s, Tensor keep, Tensor(b!) lse, Tensor(c!) leak, bool cross, float eps, int width) "
      "-> ()");
  m.def(
      "policy_gradients(Tensor(a!) s, Tensor(b!) da, Tensor keep, Tensor lse, Tensor leak, bool cross, float scale, "
      "int width) -> Tensor");
  m.def(
      "decode_attention(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, Tensor mask, Tensor cos, Tensor sin, "
      "Tensor slot, int window, float scale) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor? delta, Tensor weight, float eps, int width) -> (Tensor, Tensor)");
  m.def(
      "add_rms_norm_backward(Tensor? grad_sum, Tensor grad_normed, Tensor sum, Tensor weight, float eps, int width) "
      "-> (Tensor, Tensor)");
  m.def("draw_id(Tensor scores, Tensor uniform, int top_k, float top_p, float temperature) -> Tensor");
  m.def("swiglu(Tensor gate, Tensor up, int width) -> Tensor");
  m.def("swiglu_backward(Tensor grad, Tensor gate, Tensor up, int width) -> (Tensor, Tensor)");
  m.def("rotary_embedding(Tensor x, Tensor cos, Tensor sin, bool back, int width) -> Tensor");
  m.def("code_statistics(Tensor x, Tensor ids, int num_codes) -> (Tensor, Tensor)");
  m.def("nearest_code(Tensor x, Tensor codes, Tensor bias, int width) -> (Tensor, Tensor)");
  m.def("quantize_rows(Tensor x) -> (Tensor, Tensor)");
  m.def(
      "scale_products(Tensor products, Tensor rows, Tensor columns, Tensor bias, Tensor like, bool residual) -> Tensor");
  m.def("gelu_products(Tensor products, Tensor rows, Tensor columns, Tensor bias) -> (Tensor, Tensor)");
}
