"""The whole model: its loss against plain formulas, its files, what it refuses, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny_lavit import NUM_CODES, TEXT_SIZE, images, llama, tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, LlamaConfig

from lavit.kernels import Loss, Ragged, Segment, segment_order
from lavit.language.attention import NAME
from lavit.language.configuration import LaVITConfig
from lavit.language.continuous_features import image_rows
from lavit.language.guidance import SamplingSettings
from lavit.language.model import LaVIT, LaVITOutput
from lavit.language.sampling import sample_image_tokens
from lavit.language.text_generation import generate_text
from lavit.language.vocabulary import grow_vocabulary

BEGIN, END, CODE = TEXT_SIZE, TEXT_SIZE + 1, TEXT_SIZE + 2

TEXTS = [[3, 4, 5], [6, 7], [9], [10, 11, 12, 13], [14]]
SAMPLES = [["text", "codes"], ["features", "text"], ["text"], ["features", "text", "codes"], ["text"]]
IMAGES = 4


def build(dtype: torch.dtype = torch.float64, tied: bool = False, **settings: Any) -> LaVIT:
    return LaVIT.from_parts(llama(tie_word_embeddings=tied), tokenizer(), **settings).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    text = Ragged.from_list([torch.tensor(ids) for ids in TEXTS])
    segments = segment_order(SAMPLES)
    return {"text": text, "segments": segments, "images": images(IMAGES).to(dtype), "seeds": range(IMAGES)}


def plain(model: LaVIT, predict_shown_codes: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, text loss and image loss by transformers' own attention, one sample after the other, with all logits."""
    yes, embedding, lm = torch.tensor([True]), model.get_input_embeddings(), model.language_model
    lm.set_attn_implementation("sdpa")
    rows_of = [
        image_rows(model.visual_tokenizer, model.understanding, yes, yes, images=image[None].double(), seeds=[i])
        for i, image in enumerate(images(IMAGES))
    ]
    codes, features = [rows.codes for rows in rows_of], [rows.features for rows in rows_of]
    rows, labels = [], []
    texts, number = iter(TEXTS), 0
    for sample in SAMPLES:
        embedded: list[Tensor] = []
        wanted: list[int] = []
        for kind in sample:
            if kind == "text":
                ids = next(texts)
                embedded.append(embedding(torch.tensor(ids)))
                wanted += ids
                continue
            ids = [BEGIN, *(codes[number] + CODE).tolist(), END]
            embedded.append(embedding(torch.tensor(ids)))
            if kind == "features":
                embedded[-1] = torch.cat([embedded[-1][:1], features[number], embedded[-1][-1:]])
                shown = ids[1:-1] if predict_shown_codes else [-100] * (len(ids) - 2)
                ids = [-100, *shown, -100]
            wanted += ids
            number += 1
        logits = lm(inputs_embeds=torch.cat(embedded)[None]).logits[0, :-1, : model.vocabulary.size]
        rows.append(F.cross_entropy(logits, torch.tensor(wanted[1:], dtype=torch.int64), reduction="none"))
        labels.append(torch.tensor(wanted[1:], dtype=torch.int64))
    lm.set_attn_implementation(NAME)
    row, label = torch.cat(rows), torch.cat(labels)
    return row[label != -100].mean(), row[(label >= 0) & (label < BEGIN)].mean(), row[label >= BEGIN].mean()


def enable_checkpointing(model: LaVIT) -> None:
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # renamed in 5.20 or so


# The loss.


@pytest.mark.parametrize("shown", [False, True])
def test_the_loss_is_that_of_each_sample_alone_with_all_logits(shown: bool) -> None:
    model = build()
    wanted = plain(model, predict_shown_codes=shown)
    loss = {Segment.FEATURES: Loss.CONTENT} if shown else None
    out = model(**batch(), loss=loss)
    for got, target in zip((out.loss, out.text_loss, out.image_loss), wanted, strict=True):
        torch.testing.assert_close(got, target, rtol=0, atol=1e-9)
    assert out.num_labels == out.text_labels + out.image_labels
    assert not out.text_loss.requires_grad and not out.image_loss.requires_grad


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_the_plain_formula(tied: bool) -> None:
    model = build(tied=tied)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad(model(**batch()).loss, list(named.values()))
    theirs = torch.autograd.grad(plain(model)[0], list(named.values()))
    for name, a, b in zip(named, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_hidden_states_do_not_depend_on_what_else_is_in_the_row() -> None:
    model = build()
    whole = model(**batch(), output_hidden_states=True)
    text, segments = Ragged.from_list([torch.tensor(t) for t in TEXTS[:2]]), segment_order(SAMPLES[:2])
    part = model(text, segments, images=images(IMAGES)[:2].double(), seeds=[0, 1], output_hidden_states=True, total=90)
    used = int(part.batch.sequences.cu_seqlens[-1])
    assert part.hidden_states.shape[0] == 90
    torch.testing.assert_close(part.hidden_states[:used], whole.hidden_states[:used], rtol=0, atol=1e-9)
    assert part.hidden_states.isfinite().all()


def test_given_tokens_and_features_are_as_good_as_images() -> None:
    model = build()
    source = model.visual_tokenizer.encode_features(images(IMAGES).double())
    tokens = model.visual_tokenizer.encode(features=source, seeds=range(IMAGES))
    given = {"features": source, "tokens": tokens}
    arguments = {k: v for k, v in batch().items() if k not in ("images", "seeds")}
    torch.testing.assert_close(model(**arguments, **given).loss, model(**batch()).loss, rtol=0, atol=1e-12)
    segments, text = segment_order([["text", "codes"]]), Ragged.from_list([torch.tensor([3])])
    one = model.visual_tokenizer.encode(features=source[:1], seeds=[0])
    assert model(text, segments, tokens=one).loss > 0, "codes need no features"


def test_padded_rows_of_the_vocabulary_take_no_part() -> None:
    padded = LaVIT.from_parts(llama(TEXT_SIZE + 2 + NUM_CODES + 3), tokenizer(), text_size=TEXT_SIZE).double()
    loss = padded(**batch()).loss
    with torch.no_grad():
        padded.language_model.lm_head.weight[-3:] = 50
    assert padded(**batch()).loss == loss
    assert padded.logits(torch.zeros(2, 32).double()).shape == (2, TEXT_SIZE + 2 + NUM_CODES)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("asked", "rows"),
    [((70,), 70), ((61,), 61), ((None, 64), 64), ((62, 8), 64), ((None,), 61), ((60, 8), 64)],
    ids=["more", "the same", "a multiple", "a multiple of more", "nothing asked", "fewer, but a multiple"],
)
def test_other_rows_beyond_the_vocabulary_change_nothing(
    tied: bool, asked: tuple[int | None, ...], rows: int, tmp_path: Path
) -> None:
    model = build(tied=tied)
    assert model.vocabulary.size == 61
    loss, codes = model(**batch()).loss, sampled(model)
    embeddings = model.resize_token_embeddings(*asked)
    assert embeddings is model.get_input_embeddings() and embeddings.weight.shape[0] == rows
    head = model.get_output_embeddings()
    assert head.weight.shape[0] == head.out_features == rows and (head.weight is embeddings.weight) == tied
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == rows
    assert model.vocabulary.size == 61 and model.logits(torch.zeros(1, 32).double()).shape == (1, 61)
    assert model(**batch()).loss == loss and sampled(model) == codes
    model.save_pretrained(tmp_path)
    assert LaVIT.from_pretrained(tmp_path)(**batch()).loss == loss


@torch.no_grad()
def sampled(model: LaVIT) -> list[list[int]]:
    prompt = Ragged.from_list([torch.tensor([3, BEGIN]), torch.tensor([5, 6, 7, BEGIN])])
    settings = SamplingSettings(min_tokens=3, max_tokens=8)
    drawn = sample_image_tokens(model.language_model, model.vocabulary, prompt, settings, seeds=[0, 1], max_codes=16)
    texts = generate_text(model.language_model, model.vocabulary, prompt, min_new=2, max_new=6, eos_id=2)
    return [x.tolist() for x in (*drawn.unbind(), *texts.unbind())]


def test_rows_that_the_codes_need_cannot_be_taken_away() -> None:
    model = build()
    model.resize_token_embeddings(70)
    with pytest.raises(ValueError, match="new_num_tokens: expected at least 61 rows, the vocabulary's .*, got 60"):
        model.resize_token_embeddings(60)
    assert model.get_input_embeddings().weight.shape[0] == model.config.text_config.vocab_size == 70
    model.resize_token_embeddings(61)
    assert model.get_output_embeddings().weight.shape[0] == 61 == model.config.text_config.vocab_size


def test_the_head_can_be_replaced() -> None:
    model = build()
    head = torch.nn.Linear(32, 61, bias=False).double()
    model.set_output_embeddings(head)
    assert model.language_model.lm_head is head is model.get_output_embeddings()


def test_batches_without_images_or_without_anything() -> None:
    model = build()
    out = model(Ragged.from_list([torch.tensor([3, 4])]), segment_order([["text"]]))
    assert out.loss > 0 and out.num_labels == 1 and out.image_loss == 0
    nothing = Ragged(torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)
    out = model(nothing, segment_order([]))
    assert out.loss == 0 and out.num_labels == 0


def test_gradient_checkpointing_changes_nothing() -> None:
    model = build().train()
    plain = torch.autograd.grad(model(**batch()).loss, list(model.language_model.parameters()))
    enable_checkpointing(model)
    again = torch.autograd.grad(model(**batch()).loss, list(model.language_model.parameters()))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_own_attention_gives_the_same_loss(implementation: str) -> None:
    model = build()
    wanted = model(**batch()).loss
    model.language_model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(**batch()).loss, wanted, rtol=0, atol=1e-6)


def test_autocast_trains_float32_parameters() -> None:
    model = build(torch.float32).train()
    exact = model(**batch(torch.float32)).loss
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch(torch.float32))
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(out.loss, exact, rtol=0.05, atol=0)


# Learning.


@pytest.mark.parametrize("objective", ["classify", "regress"])
def test_it_learns_a_batch_of_every_kind_of_sample(objective: str) -> None:
    model = build(torch.float32, image_objective=objective).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    outputs: list[LaVITOutput] = []
    for _ in range(30):
        outputs.append(model(**batch(torch.float32)))
        optimizer.zero_grad()
        outputs[-1].loss.backward()
        optimizer.step()
    first, last = outputs[0], outputs[-1]
    assert last.text_loss < 0.5 * first.text_loss and last.image_loss < 0.7 * first.image_loss
    assert not any(p.grad is not None for p in model.visual_tokenizer.parameters())


def test_every_trained_parameter_gets_a_gradient() -> None:
    for settings in ({}, {"image_objective": "regress"}):
        model = build(**settings).train()
        model(**batch()).loss.backward()
        idle = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
        assert idle <= {"understanding.causal_encoder.blocks.0.token_cross_attn.key.bias"}


def test_under_ddp_a_batch_of_text_alone_gives_every_parameter_a_gradient() -> None:
    """Zero, where it plays no part: DistributedDataParallel waits for all of them."""
    model = build(image_objective="regress").train()
    text, segments = Ragged.from_list([torch.tensor([3, 4])]), segment_order([["text"]])
    alone = model(text, segments).loss
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        loss = wrapped(text, segments).loss
        assert loss == alone
        loss.backward()
    finally:
        dist.destroy_process_group()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.grad.any() for p in model.understanding.parameters())


def test_regression_predicts_the_next_embedding_from_the_row_before() -> None:
    model = build(image_objective="regress")
    out = model(**batch(), output_hidden_states=True)
    merged = [model.visual_tokenizer.features(images(IMAGES)[i : i + 1].double(), seeds=[i]).values for i in (0, 3)]
    ids, rows = out.batch.sequences.input_ids, out.batch.target_rows
    written = torch.cat(merged)
    assert out.image_labels == rows.shape[0] == written.shape[0]
    predicted = model.regressor(out.hidden_states[rows - 1])
    torch.testing.assert_close(out.image_loss, (predicted - written).square().mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.loss - out.image_loss, out.text_loss, rtol=0, atol=1e-12)
    # What is written is read as features too, and [IMG] and [/IMG] are still words to be predicted.
    assert out.batch.features.shape[0] == out.batch.feature_rows.shape[0] > rows.shape[0]
    assert out.text_labels == sum(map(len, TEXTS)) - 3 + 4 and (ids == BEGIN).sum() == IMAGES


# Parts and files.


def test_parts_keep_their_tensors_and_new_rows_are_drawn() -> None:
    lm, source = llama(), tokenizer(projection_dim=32)
    old = {k: v.clone() for k, v in lm.state_dict().items()}
    visual = {k: v.clone() for k, v in source.state_dict().items()}
    model = LaVIT.from_parts(lm, source)
    assert all(torch.equal(v[: old[k].shape[0]], old[k]) for k, v in model.language_model.state_dict().items())
    assert all(torch.equal(v, visual[k]) for k, v in model.visual_tokenizer.state_dict().items())
    assert all(torch.equal(v, visual[k]) for k, v in model.understanding.state_dict().items())
    assert model.config.text_config.vocab_size == TEXT_SIZE + 2 + NUM_CODES == lm.get_input_embeddings().weight.shape[0]
    assert model.understanding.causal_encoder is not source.causal_encoder
    assert not any(p.requires_grad for p in source.parameters())
    assert not model.train().visual_tokenizer.training and model.understanding.training


def test_new_rows_have_the_mean_and_covariance_of_the_old_ones() -> None:
    torch.manual_seed(0)
    lm = llama(2000, hidden_size=8, num_key_value_heads=4, tie_word_embeddings=False)
    for weight in (lm.get_input_embeddings().weight, lm.lm_head.weight):
        with torch.no_grad():
            weight.copy_(torch.randn(2000, 8) @ torch.randn(8, 8) + torch.arange(8.0))
    grow_vocabulary(lm, 2000, 12000)
    for weight in (lm.get_input_embeddings().weight, lm.lm_head.weight):
        old, new = weight[:2000].detach(), weight[2000:].detach()
        assert new.shape[0] == 10000
        deviation = old.std(0)
        # Standard errors: of a mean s / 100, of a covariance s s' / 70; five of them.
        assert ((new.mean(0) - old.mean(0)).abs() < 5 * deviation / 100).all()
        assert ((new.T.cov() - old.T.cov()).abs() < 5 * deviation[:, None] * deviation / 70).all()


def test_the_padding_of_a_checkpoint_is_drawn_anew() -> None:
    lm = llama(TEXT_SIZE + 5)
    with torch.no_grad():
        lm.get_input_embeddings().weight[TEXT_SIZE:] = 0
    model = LaVIT.from_parts(lm, tokenizer(), text_size=TEXT_SIZE)
    assert model.get_input_embeddings().weight.any(dim=1).all()
    assert model.config.text_config.vocab_size == TEXT_SIZE + 2 + NUM_CODES


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_what_is_saved_comes_back(tied: bool, shard: str, tmp_path: Path) -> None:
    model = build(torch.float32, tied=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "40KB")
    for loader in (LaVIT, AutoModel):
        back = loader.from_pretrained(tmp_path)
        assert isinstance(back, LaVIT) and not back.training
        expected = model.state_dict()
        assert back.state_dict().keys() == expected.keys()
        assert all(torch.equal(t, expected[name]) for name, t in back.state_dict().items())
        lm = back.language_model
        assert (lm.lm_head.weight is lm.get_input_embeddings().weight) == tied
        assert torch.equal(back(**batch(torch.float32)).loss, model(**batch(torch.float32)).loss)
        frozen = {n for n, p in back.named_parameters() if not p.requires_grad}
        assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}
    asked = LaVIT.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert asked.language_model.config._attn_implementation == "sdpa"


def test_half_precision_keeps_what_decides_the_ids_in_float32(tmp_path: Path) -> None:
    build(torch.float32).save_pretrained(tmp_path)
    back = LaVIT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert back.language_model.lm_head.weight.dtype == back.understanding.vit_proj.weight.dtype == torch.bfloat16
    assert back.visual_tokenizer.quantize.embedding.weight.dtype == torch.float32
    assert back(**batch(torch.bfloat16)).loss.isfinite()


def test_a_checkpoint_that_does_not_fit_is_refused_with_all_names(tmp_path: Path) -> None:
    build(torch.float32).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["understanding.vit_proj.bias"]
    head = state["language_model.lm_head.weight"]
    state |= {"stranger.weight": torch.zeros(2), "language_model.lm_head.weight": head[:-1].clone()}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        LaVIT.from_pretrained(tmp_path)
    for part in (
        "missing: understanding.vit_proj.bias;",
        "unexpected: stranger.weight;",
        "of another shape: language_model.lm_head.weight (file (60, 32), model (61, 32))",
    ):
        assert part in str(caught.value)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="a weights file is damaged"):
        LaVIT.from_pretrained(tmp_path)


# What is refused.


def test_bad_batches_are_named() -> None:
    model = build(torch.float32)
    arguments = batch(torch.float32)
    text = arguments["text"]
    with pytest.raises(ValueError, match="text: expected ids 0 to 60, got 61 in piece 3"):
        wrong = text.values.clone()
        wrong[8] = 61
        model(**{**arguments, "text": text.with_values(wrong)})
    with pytest.raises(ValueError, match="text: expected 5 pieces, one for each segment of text, got 1"):
        model(**{**arguments, "text": Ragged.from_list([text.values])})
    with pytest.raises(ValueError, match="images: expected 4, one for each segment of an image, got 3"):
        model(**{**arguments, "images": images(3)})
    with pytest.raises(ValueError, match="images, features: expected one of them, got none"):
        model(**{**arguments, "images": None})
    with pytest.raises(ValueError, match="total: expected at least .* rows for these samples, got 5"):
        model(**arguments, total=5)
    with pytest.raises(ValueError, match=r"loss: expected shape \(9,\), one a segment, got \(2,\)"):
        model(**arguments, loss=torch.tensor([1, 1]))
    model.config.text_config.max_position_embeddings = 25
    # Every patch is kept: 16 and the two markers; the fourth sample has two images.
    noise = torch.zeros(IMAGES, 16, 2).index_fill(2, torch.tensor([0]), 1e3)
    with pytest.raises(ValueError, match="sample 3: expected at most 25 tokens, the model's context, got 40"):
        model(**{**arguments, "noise": noise, "seeds": None})


def test_a_language_model_of_another_vocabulary_is_named() -> None:
    with pytest.raises(ValueError, match="language_model: expected at least 50 rows of text ids, got 43"):
        LaVIT.from_parts(llama(), tokenizer(), text_size=50)
    with pytest.raises(ValueError, match="vocab_size: expected at least 61 rows .* got 60"):
        LaVITConfig(LlamaConfig(vocab_size=60), tokenizer().config, text_size=TEXT_SIZE)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_cpu_and_gpu_give_the_same_loss() -> None:
    model = build(torch.float32)
    here = model(**batch(torch.float32))
    there = model.cuda()(**batch(torch.float32))
    torch.testing.assert_close(there.loss.cpu(), here.loss, rtol=1e-4, atol=1e-4)
