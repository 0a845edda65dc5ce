"""`for_inference`: what each mode may change, which is nothing without arguments, and rounding with fewer bits."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from functools import cache
from typing import Any

import pytest
import torch
from golden_tensors import golden, golden_config, weights
from torch import Tensor

from lavit.kernels import int8_rows
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.encoder_attention import Measured, fastest, implementations, measured
from lavit.tokenizer.inference import keep_compiled_code, shares
from lavit.tokenizer.pretrained import StrictModel

BFLOAT16 = torch.finfo(torch.bfloat16).eps
packs = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this processor"
)


def model(**overrides: Any) -> LaVITTokenizer:
    made = LaVITTokenizer(golden_config(**overrides))
    made.load_state_dict(weights("tokenizer", "tokenizer."), strict=False)
    return made.eval()


@cache
def images(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.cat((golden("tokenizer")["images"].float(), torch.randn(8, 3, 84, 84, generator=generator)))[:batch]


@cache
def exact(batch: int = 3) -> Tensor:
    return model().double().encode_features(images(batch).double())


def error(features: Tensor) -> float:
    """Of all features, relative, in the norm: what rounding does to it grows like the root of the roundings' number."""
    wanted = exact(len(features))
    return float((features.double() - wanted).norm() / wanted.norm())


def rounding(dtype: torch.dtype) -> float:
    """Twice the error of PyTorch's own operations on the same weights in ``dtype``."""
    return 2 * error(model().to(dtype).encode_features(images().to(dtype)))


@pytest.mark.parametrize("arguments", [{}, {"dtype": "float32", "compile": False}])
def test_without_another_dtype_nothing_changes_in_any_bit(arguments: dict[str, Any]) -> None:
    before, prepared = model(), model().for_inference(**arguments)
    assert torch.equal(prepared.encode_features(images()), before.encode_features(images()))
    ours, theirs = (m.encode(images(), seeds=[1, 2, 3]) for m in (prepared, before))
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.keep, theirs.keep)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fewer_bits_are_in_the_encoder_alone_and_its_features_come_in_float32(dtype: str) -> None:
    prepared = model().for_inference(dtype=dtype)
    stored = {name: p.dtype for name, p in prepared.named_parameters()}
    assert {stored[name] for name in stored if name.startswith("encoder.")} == {getattr(torch, dtype)}
    assert {stored[name] for name in stored if not name.startswith("encoder.")} == {torch.float32}
    features = prepared.encode_features(images())
    assert features.dtype == torch.float32
    assert error(features) <= rounding(getattr(torch, dtype))


@packs
@pytest.mark.parametrize("batch", [1, 3])
def test_packed_products_are_within_twice_the_rounding_of_plain_ones(batch: int) -> None:
    prepared = model().for_inference(dtype="bfloat16", compile=True)
    assert prepared.mode is not None and prepared.mode.products == "oneDNN"
    assert error(prepared.encode_features(images(batch))) <= rounding(torch.bfloat16)


def quantized(name: str, **arguments: Any) -> LaVITTokenizer:
    pytest.importorskip("torchao", reason="torchao is not installed")
    return model().for_inference(quantization=name, **arguments)


def needs_compiled_rows() -> None:
    if reason := int8_rows.OPERATION.implementations["cpp"].unusable("cpu"):
        pytest.skip(reason)


def rounded(rows: Tensor) -> Tensor:
    """Every row to 256 steps, as wide as its largest value asks for."""
    step = rows.abs().amax(dim=-1, keepdim=True) / 127.5
    return (rows / step).round().clamp(-128, 127) * step


def by_hand(activations: bool) -> Tensor:
    """Features in float64 with weights, and what they are multiplied by, rounded to int8 by rows."""
    prepared = model().double().for_inference()
    for layer in (m for m in prepared.encoder.blocks.modules() if isinstance(m, torch.nn.Linear)):
        layer.weight.data = rounded(layer.weight.data)
        if activations:
            layer.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
    return prepared.encode_features(images().double())


@pytest.mark.parametrize(
    ("name", "activations", "compile"),
    [("int8-weight-only", False, False), ("int8", True, False), ("int8", True, True)],
)
def test_int8_is_rounding_by_rows(name: str, activations: bool, compile: bool) -> None:
    if compile:
        needs_compiled_rows()
    wanted, found = by_hand(activations), quantized(name, compile=compile).encode_features(images())
    off, rounding = float((found - wanted).norm() / wanted.norm()), error(wanted)
    # A row's largest value lies halfway between two steps, so that the last bit decides: of one weight in a row a
    # hundred long, and with activations of all products. Rounded to whole tensors it would be several times as much.
    assert off <= (rounding if activations else 0.2 * rounding)
    assert error(found) <= 1.2 * rounding


@pytest.mark.parametrize("compile", [False, True])
def test_int8_rows_do_not_depend_on_the_batch(compile: bool) -> None:
    if compile:
        needs_compiled_rows()
    prepared = quantized("int8", compile=compile)
    together = prepared.encode_features(images())
    alone = torch.cat([prepared.encode_features(image) for image in images().split(1)])
    assert (together - alone).norm() <= 0.2 * (together - exact()).norm()


def test_quantized_weights_keep_their_names_and_are_the_blocks_only() -> None:
    prepared = quantized("int8")
    assert prepared.state_dict().keys() == model().state_dict().keys()
    plain = {name for name, p in prepared.named_parameters() if type(p) is torch.nn.Parameter}
    assert {name for name in dict(prepared.named_parameters()) if name not in plain} == {
        f"encoder.blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="has something to run on")
def test_float8_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="quantization: float8 needs a CUDA device of compute 8.9"):
        model().for_inference(quantization="float8", dtype="bfloat16")


def test_quantization_without_torchao_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    untouched = model()
    with pytest.raises(ImportError, match=r"lavit\[quantization\]"):
        untouched.for_inference(quantization="int8")
    assert untouched.encoder.prepared is None


@packs
@pytest.mark.parametrize(("quantization", "compile"), [(None, True), ("int8", True), ("int8", False)])
def test_batches_without_images_and_images_without_tokens_pass(quantization: str | None, compile: bool) -> None:
    if quantization is not None:
        pytest.importorskip("torchao", reason="torchao is not installed")
    low = {"dtype": "bfloat16", "merger_dtype": "bfloat16", "compile": compile}
    prepared = model(min_keep=0).for_inference(**low, quantization=quantization)
    assert prepared.encode(images()[:0], deterministic=True).ids.shape == (0,)
    noise = torch.tensor([-1e4, 1e4]).expand(3, prepared.num_patches, 2)
    assert prepared.encode(images(), noise=noise).ids.shape == (0,)


def test_one_block_is_compiled_for_all_and_short_batches_are_padded() -> None:
    prepared = model(encoder_depth=2).for_inference(compile=True, batch_sizes=(2,))
    torch._dynamo.utils.counters.clear()
    features = prepared.encode_features(images())  # two, and one padded
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert error(features) <= rounding(torch.float32)
    assert torch.equal(features[2:], prepared.encode_features(images()[2:]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=packs)])
def test_merger_in_bfloat16_leaves_the_selection_as_it_is(compile: bool) -> None:
    plain, prepared = model(), model().for_inference(merger_dtype="bfloat16")
    if compile:  # a merger with products by oneDNN
        packed = model().for_inference(dtype="bfloat16", merger_dtype="bfloat16", compile=True)
        prepared.causal_encoder = packed.causal_encoder
    assert {p.dtype for p in prepared.causal_encoder.parameters()} == {torch.bfloat16}
    seeds = [1, 2, 3]
    assert torch.equal(prepared.encode(images(), seeds=seeds).keep, plain.encode(images(), seeds=seeds).keep)
    ours, theirs = (m.latents(images(), seeds=seeds).values for m in (prepared, plain))
    assert ours.dtype == torch.float32
    # Two blocks of six roundings, each at most half of eps, which do not all go one way.
    assert (ours - theirs).norm() <= 2 * 12**0.5 * (BFLOAT16 / 2) * theirs.norm()


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (1, (1, 4, 16), [(1, 1)]),
        (3, (1, 4, 16), [(3, 4)]),
        (5, (1, 4, 16), [(4, 4), (1, 1)]),
        (9, (1, 4, 16), [(9, 16)]),
        (40, (1, 4, 16), [(16, 16), (16, 16), (4, 4), (4, 4)]),
        (3, (8,), [(3, 8)]),
        (17, (8,), [(8, 8), (8, 8), (1, 8)]),
    ],
)
def test_batches_are_split_and_padded_to_the_sizes(count, sizes, expected) -> None:
    assert shares(count, sizes) == expected
    assert sum(taken for taken, _ in expected) == count


def test_prepared_twice_alike_is_prepared_once_and_otherwise_is_refused() -> None:
    prepared = model().for_inference(dtype="bfloat16")
    run = prepared.encoder.prepared
    assert prepared.for_inference(dtype="bfloat16").encoder.prepared is run
    with pytest.raises(RuntimeError, match="prepared already"):
        prepared.for_inference(dtype="float32")


def test_rounded_weights_are_not_saved_and_others_are(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="rounded for inference"):
        model().for_inference(dtype="bfloat16").save_pretrained(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()
    prepared = model().for_inference(compile=True)
    assert prepared.state_dict().keys() == model().state_dict().keys()
    prepared.save_pretrained(tmp_path / "same")
    loaded = LaVITTokenizer.from_pretrained(tmp_path / "same").eval()
    assert torch.equal(loaded.encode_features(images()), model().encode_features(images()))


def test_weights_are_not_exchanged_under_a_prepared_encoder() -> None:
    prepared = model().for_inference(dtype="bfloat16")
    with pytest.raises(RuntimeError, match="takes no other weights"):
        prepared.load_state_dict(model().state_dict())
    with pytest.raises(RuntimeError, match="move and cast a tokenizer before"):
        prepared.double().encode_features(images())


@packs
@pytest.mark.parametrize("gradient", ["packed", "exact"])
def test_a_packed_merger_learns_as_a_plain_one_and_computes_with_what_it_learned(gradient: str) -> None:
    source, features, seeds = model(selector_gradient=gradient), exact().float(), [1, 2, 3]
    plain, packed = (
        copy.deepcopy(source).for_inference(dtype="bfloat16", merger_dtype="bfloat16", compile=compile)
        for compile in (False, True)
    )
    for one in (plain, packed):
        one.train()(features=features, seeds=seeds).loss.backward()
        torch.optim.SGD(one.causal_encoder.parameters(), lr=1.0).step()
        one.eval()
    for ours, theirs in zip(packed.causal_encoder.parameters(), plain.causal_encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        before, found, wanted = (m.latents(features=features, seeds=seeds).values for m in (source, packed, plain))
    assert (found - wanted).norm() <= 0.1 * (before - wanted).norm()


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_prepared_tokenizers_are_neither_copied_nor_pickled_and_say_so(quantization: str | None) -> None:
    if quantization is not None:
        pytest.importorskip("torchao", reason="torchao is not installed")
    prepared = model().for_inference(quantization=quantization)
    for of in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="cannot be copied or pickled"):
            of(prepared)


def test_a_model_with_rounded_weights_in_a_part_is_not_saved(tmp_path) -> None:
    class Holder(StrictModel):
        config_class = LaVITTokenizerConfig
        _supports_sdpa = True

        def __init__(self, part: LaVITTokenizer) -> None:
            super().__init__(part.config)
            self.part = part

    with pytest.raises(RuntimeError, match="rounded for inference"):
        Holder(model().for_inference(dtype="bfloat16")).save_pretrained(tmp_path / "rounded")
    assert not (tmp_path / "rounded").exists()


def test_autocast_stays_the_callers_where_nothing_is_changed() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (m.encode_features(images()) for m in (model().for_inference(), model()))
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "dtype: expected float32, bfloat16, float16 or None, got 'int8'"),
        ({"merger_dtype": torch.int8}, "merger_dtype: expected"),
        ({"quantization": "int3"}, "quantization: expected float8, int8, int8-weight-only or None, got 'int3'"),
        ({"batch_sizes": ()}, "batch_sizes: expected one to 8 positive whole numbers"),
        ({"batch_sizes": (0, 1)}, "batch_sizes: expected"),
        ({"batch_sizes": (1.0,)}, "batch_sizes: expected"),
        ({"batch_sizes": 4}, "batch_sizes: expected"),
        ({"batch_sizes": ([1],)}, "batch_sizes: expected"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model().for_inference(**arguments)


@pytest.mark.parametrize("name", list(implementations("cpu")))
def test_every_attention_of_a_cpu_is_one_function(name: str) -> None:
    q, k, v = torch.randn(3, 2, 7, 3, 88).unbind(0)
    attend = implementations("cpu")[name]
    s = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) / 88**0.5
    wanted = torch.einsum("bhij,bjhd->bihd", s.softmax(-1), v.double())
    torch.testing.assert_close(attend(q, k, v).double(), wanted, rtol=1e-5, atol=1e-5)


def test_another_attention_is_taken_only_where_it_is_clearly_faster() -> None:
    own = Measured("sdpa", 1.0)
    assert fastest((own, Measured("other", 0.95), Measured("absent", None, "not installed"))) == "sdpa"
    assert fastest((own, Measured("other", 0.8), Measured("third", 0.5))) == "third"
    full = Measured("sdpa", None, "out of memory")
    assert fastest((full, Measured("other", 0.8), Measured("third", 0.5))) == "third"
    assert fastest((full, Measured("other", None, "out of memory"))) == "sdpa"


def test_all_that_is_here_is_measured() -> None:
    found = measured(torch.device("cpu"), torch.float32, 1, 5, 2, 8)
    assert [one.name for one in found] == list(implementations("cpu"))
    assert all(one.seconds is not None and one.seconds > 0 for one in found)


def test_compiled_code_lies_in_the_users_cache_unless_told_otherwise(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "lavit" / "inductor")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gpu_graphs_equal_the_exact_features_up_to_rounding(dtype: str) -> None:
    prepared = model().cuda().for_inference(dtype=dtype, compile=True, batch_sizes=(1, 2))
    for _ in range(2):  # recorded, then replayed
        features = prepared.encode_features(images().cuda()).cpu()
        assert error(features) <= 2 * rounding(getattr(torch, dtype)) + 1e-3 * (dtype == "float32")
