"""Packed rows: every sample as if it were alone, with ours and with transformers' own attention, and generation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from host_reads import host_reads
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.kernels.dispatch import OPERATIONS
from lavit.language.attention import NAME, packed_arguments

LENGTHS = [5, 1, 13, 2]


def language_model(implementation: str = NAME, heads: int = 2, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=heads, vocab_size=61, attn_implementation=implementation)
    return LlamaForCausalLM(config).to(dtype).eval()


def packed(padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """ids and positions (1, T), offsets."""
    ids = torch.randint(61, (1, sum(LENGTHS) + padding), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([*(torch.arange(n) for n in LENGTHS), torch.zeros(padding, dtype=torch.int64)])[None]
    return ids, positions, torch.tensor([0, *LENGTHS]).cumsum(0).int()


def alone(model: LlamaForCausalLM, ids: Tensor, cu: Tensor) -> Tensor:
    """One sample after the other, unpacked, through transformers' attention (eager's softmax is in float32)."""
    model.set_attn_implementation("sdpa")
    return torch.cat([model(ids[:, a:b]).logits for a, b in pairwise(cu.tolist())], dim=1)


@pytest.mark.parametrize("implementation", [NAME, "sdpa"])
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_packed_logits_are_those_of_each_sample_alone(implementation: str, heads: int) -> None:
    model = language_model(implementation, heads)
    ids, positions, cu = packed()
    arguments = packed_arguments(cu, max(LENGTHS), implementation)
    logits = model(ids, position_ids=positions, **arguments).logits
    torch.testing.assert_close(logits, alone(model, ids, cu), rtol=0, atol=1e-9)


def test_packed_gradients_are_those_of_each_sample_alone() -> None:
    model = language_model()
    ids, positions, cu = packed()
    parameters = list(model.parameters())
    logits = model(ids, position_ids=positions, **packed_arguments(cu, max(LENGTHS))).logits
    weight = torch.randn_like(logits)
    ours = torch.autograd.grad((logits * weight).sum(), parameters)
    theirs = torch.autograd.grad((alone(model, ids, cu) * weight).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_several_rows_padding_and_a_loose_bound_change_nothing() -> None:
    model = language_model()
    ids, positions, cu = packed(padding=3)
    one = model(ids, position_ids=positions, **packed_arguments(cu, max(LENGTHS))).logits
    assert one.isfinite().all()
    rows = [x.view(3, -1) for x in (ids, positions)]
    three = model(rows[0], position_ids=rows[1], **packed_arguments(cu, 1000)).logits
    torch.testing.assert_close(three.view(one.shape), one, rtol=0, atol=1e-12)


def test_no_mask_is_built_for_packed_rows() -> None:
    """A model of one head and many short samples allocates less than one mask of bytes."""
    model, n = language_model(dtype=torch.float32), 1500
    cu = torch.arange(0, n + 1, 5, dtype=torch.int32)
    ids, positions = torch.zeros(1, n, dtype=torch.int64), (torch.arange(n) % 5)[None]

    def largest(implementation: str) -> int:
        model.set_attn_implementation(implementation)
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            model.model(ids, position_ids=positions, **packed_arguments(cu, 5, implementation))
        events = profiled.profiler.kineto_results.events()
        return max(e.nbytes() for e in events if e.name() == "[memory]")

    assert largest("sdpa") >= n * n
    assert largest(NAME) < n * n


def test_generation_with_a_cache_and_padding_is_transformers_own() -> None:
    ids = torch.randint(3, 61, (2, 7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    wanted = language_model("sdpa").generate(ids, **settings)
    for cache in ("dynamic", "static"):
        assert torch.equal(language_model().generate(ids, cache_implementation=cache, **settings), wanted)


def test_packed_rows_with_a_cache_or_dropout_are_refused() -> None:
    model = language_model()
    ids, positions, cu = packed()
    arguments = packed_arguments(cu, max(LENGTHS))
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match=r"key: expected 21 rows.*got 25: packed with a cache\?"):
        model(ids, position_ids=positions, **{**arguments, "use_cache": True}, past_key_values=cache)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="attention_dropout: expected 0 for packed rows, got 0.1"):
        model(ids, position_ids=positions, **arguments)


def test_a_packed_forward_pass_reads_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, by the kernel that a GPU gets."""
    if reason := OPERATIONS["varlen_attention"].implementations["triton"].unusable("cpu"):
        pytest.skip(reason)
    monkeypatch.setenv("LAVIT_KERNELS", "varlen_attention=triton")
    model = language_model(dtype=torch.float32)
    ids, positions, cu = packed()
    with torch.no_grad(), host_reads() as reads:
        model.model(ids, position_ids=positions, **packed_arguments(cu, max(LENGTHS)))
    assert reads == []
    with torch.no_grad(), host_reads() as reads:
        model.set_attn_implementation("sdpa")
        model.model(ids, position_ids=positions, **packed_arguments(cu, max(LENGTHS), "sdpa"))
    assert reads, "transformers asks whether the positions are packed"


@pytest.mark.gpu
def test_a_packed_forward_pass_waits_for_nothing() -> None:
    model = language_model(dtype=torch.bfloat16).cuda()
    ids, positions, cu = (x.cuda() for x in packed())

    def run() -> Tensor:
        return model.model(ids, position_ids=positions, **packed_arguments(cu, max(LENGTHS))).last_hidden_state

    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
