"""lavit.kernels: the operations. Tensors in, tensors out; no model and no configuration is known here."""

from __future__ import annotations

from lavit.kernels.add_rms_norm import add_rms_norm
from lavit.kernels.assemble_sequences import Loss, Segment, Sequences, assemble_sequences, segment_order
from lavit.kernels.bin_pack import BinPacker, Bins, bin_pack
from lavit.kernels.code_statistics import code_statistics
from lavit.kernels.decode_attention import decode_attention
from lavit.kernels.draw_id import draw_id
from lavit.kernels.gumbel_select import gumbel_select
from lavit.kernels.int8_rows import gelu_products, quantize_rows, scale_products
from lavit.kernels.layer_norm import layer_norm
from lavit.kernels.nearest_code import nearest_code
from lavit.kernels.pack import pack, unpack
from lavit.kernels.pad import pad, unpad
from lavit.kernels.partition import partition
from lavit.kernels.policy_attention import policy_attention
from lavit.kernels.rotary_embedding import rotary_embedding
from lavit.kernels.swiglu import swiglu
from lavit.kernels.types import Ragged, Selection
from lavit.kernels.varlen_attention import varlen_attention

__all__ = [
    "BinPacker",
    "Bins",
    "Loss",
    "Ragged",
    "Segment",
    "Selection",
    "Sequences",
    "add_rms_norm",
    "assemble_sequences",
    "bin_pack",
    "code_statistics",
    "decode_attention",
    "draw_id",
    "gelu_products",
    "gumbel_select",
    "layer_norm",
    "nearest_code",
    "pack",
    "pad",
    "partition",
    "policy_attention",
    "quantize_rows",
    "rotary_embedding",
    "scale_products",
    "segment_order",
    "swiglu",
    "unpack",
    "unpad",
    "varlen_attention",
]
