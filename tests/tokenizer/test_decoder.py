"""The decoder and its U-Net heads: golden values, ranks, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from golden_tensors import assert_within_twice, golden, golden_config, load, relative, weights
from plain_formulas import cast, linear
from plain_formulas import decoder as plain_decoder
from torch import Tensor

from lavit.kernels import Ragged
from lavit.tokenizer.decoder import TokenDecoder, packed_rank


def golden_decoder(kind: str, dtype: torch.dtype) -> TokenDecoder:
    config = golden_config(decoder_condition=kind, decoder_out_dim=192)
    return load(TokenDecoder(config), f"decoder_{kind}", "decoder.", dtype)


def golden_codes(kind: str, dtype: torch.dtype = torch.float64) -> Ragged:
    tensors = golden(f"decoder_{kind}")
    return Ragged.from_list(list(tensors["codes"].to(dtype).split(tensors["lengths"].tolist())))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_lowres_condition_equals_golden(dtype: torch.dtype, tolerance: float) -> None:
    decoder = golden_decoder("lowres", dtype)
    out = decoder.condition(decoder(golden_codes("lowres", dtype)))
    assert relative(out, golden("decoder_lowres")["out"]) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_highres_condition_equals_golden(dtype: torch.dtype, tolerance: float) -> None:
    decoder = golden_decoder("highres", dtype)
    prompt, pooled = decoder.condition(decoder(golden_codes("highres", dtype)))
    assert relative(prompt, golden("decoder_highres")["prompt_embeds"]) < tolerance
    assert relative(pooled, golden("decoder_highres")["pooled_prompt_embeds"]) < tolerance


def test_bfloat16_error_is_within_twice_that_of_plain_formulas() -> None:
    decoder, tensors = golden_decoder("lowres", torch.bfloat16), golden("decoder_lowres")
    w = cast(weights("decoder_lowres", "decoder."), torch.bfloat16)
    plain = linear(w, "unet_proj", plain_decoder(w, tensors["codes"].bfloat16(), tensors["lengths"].tolist(), 2, 2))
    out = decoder.condition(decoder(golden_codes("lowres", torch.bfloat16)))
    assert_within_twice(out, plain, tensors["out"])


def test_unused_rows_and_a_loose_bound_change_nothing() -> None:
    decoder, codes = golden_decoder("lowres", torch.float64), golden_codes("lowres")
    garbage = torch.full((7, 32), 3.0, dtype=torch.float64)
    loose = Ragged(torch.cat((codes.values, garbage)), codes.cu_seqlens, 36)
    torch.testing.assert_close(decoder(loose), decoder(codes), rtol=1e-12, atol=1e-12)


def test_an_image_without_codes_is_decoded_from_the_queries_alone() -> None:
    decoder, codes = golden_decoder("lowres", torch.float64), golden_codes("lowres").unbind()
    out = decoder(Ragged.from_list([codes[0], codes[0][:0], codes[1]]))
    torch.testing.assert_close(out[[0, 2]], decoder(Ragged.from_list(codes[:2])), rtol=1e-12, atol=1e-12)
    assert out[1].isfinite().all()


def test_hidden_codes_with_ranks_equal_packed_codes() -> None:
    """The all-rows form of training: weight 0 hides a code and the rank tells the place that it would have."""
    decoder = golden_decoder("lowres", torch.float64)
    codes = torch.randn(2, 36, 32, dtype=torch.float64)
    keep = (torch.rand(2, 36) < 0.4).double()
    packed = Ragged.from_list([c[k > 0] for c, k in zip(codes, keep, strict=True)])
    rank = (keep.cumsum(1) - keep).long().flatten()
    all_rows = Ragged(codes.flatten(0, 1), torch.tensor([0, 36, 72], dtype=torch.int32), 36)
    out = decoder(all_rows, rank=rank, key_weight=keep.flatten())
    torch.testing.assert_close(out, decoder(packed), rtol=1e-10, atol=1e-10)


def test_rank_counts_within_each_image() -> None:
    ragged = Ragged(torch.zeros(7, 1), torch.tensor([0, 3, 3, 5], dtype=torch.int32), 3)
    assert packed_rank(ragged).tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert packed_rank(Ragged(torch.zeros(0, 1), torch.tensor([0], dtype=torch.int32), 0)).tolist() == []


def assert_refused(values: Tensor, cu: list[int], bound: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden_decoder("lowres", torch.float64)(Ragged(values, torch.tensor(cu, dtype=torch.int32), bound))


def test_more_codes_than_positions_are_refused() -> None:
    codes = torch.zeros(37, 32, dtype=torch.float64)
    assert_refused(codes, [0, 37], 37, "codes: expected at most 36 codes per image .*, got up to 37")
    assert_refused(codes, [0, 37], 36, "codes.cu_seqlens: expected at most 36 rows a sequence, got 37 in sequence 0")
    assert_refused(codes, [0, 38], 36, "codes.cu_seqlens: expected at most 36 rows a sequence, got 38 in sequence 0")
    assert_refused(codes, [0, 30, 20], 36, "codes.cu_seqlens: expected non-decreasing offsets, they fall after entry 1")


def test_wrong_code_width_is_refused() -> None:
    assert_refused(torch.zeros(2, 31, dtype=torch.float64), [0, 2], 2, "codes: expected rows of width 32")


def test_a_decoder_without_head_says_so() -> None:
    decoder = TokenDecoder(golden_config())
    with pytest.raises(RuntimeError, match="no U-Net head"):
        decoder.condition(torch.zeros(1, 36, 176))
