"""What the model is for: captions, answers, and image tokens. The methods of :class:`lavit.LaVIT` of the same names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavit.data.sequences import PROMPT as QUESTION
from lavit.kernels import Ragged
from lavit.kernels.checks import as_seeds
from lavit.kernels.gumbel_select import SEED_RANGE
from lavit.language.assembly import Model
from lavit.language.guidance import MULTIMODAL_GUIDANCE, SamplingSettings
from lavit.language.postprocessing import cut_answer, cut_caption
from lavit.language.processing import LaVITProcessor, no_ids
from lavit.language.prompt_embedding import PromptReader, Skipped
from lavit.language.sampling import sample_image_tokens
from lavit.language.text_generation import generate_text
from lavit.language.text_settings import TextSettings, own_settings
from lavit.tokenizer.processing import one_by_one

Scorer = Callable[[Sequence[Any], Tensor], Any]
"""(prompts, features (n, N, C_out) of the decoded samples), n of each -> n numbers, the higher the better."""


class Texts(list[str]):
    """Texts in the order of their items. indices: the item of each. skipped: items without a text, and why."""

    def __init__(self, texts: Iterable[str], indices: list[int], skipped: list[Skipped]) -> None:
        super().__init__(texts)
        self.indices = indices
        self.skipped = skipped


@dataclass(frozen=True)
class GeneratedTokens:
    """Images as codes.

    codes: (T,) int64 in [0, K), ragged over n sequences; the samples of a prompt one after the other, or the best alone
        where a scorer chose. indices: the prompt of each sequence. skipped: prompts without one, and why.
    scores: (prompts in use, num_samples) float64 of all samples, with a scorer. features: (n, N, C_out), decoded from
        the codes, by ``generate_features``.
    """

    codes: Ragged
    indices: list[int]
    skipped: list[Skipped]
    scores: Tensor | None = None
    features: Tensor | None = None


def caption(
    model: Model,
    images: Any,
    processor: LaVITProcessor,
    *,
    num_beams: int | None = None,
    min_new: int | None = None,
    max_new: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | None = None,
    cut: Callable[[str], str] = cut_caption,
    image_seeds: Tensor | Sequence[int] | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
) -> Texts:
    """Say what is to be seen: ``[IMG] features [/IMG]``, and the best beam after it.

    images: a list of PIL images, paths (strings too), bytes of files, or what the image processor takes; or a batch of
        uint8 arrays (B, H, W, 3), or of pixels (B, 3, S, S) that the image processor has normalised. One image is a
        list of one. processor: of this model.
    num_beams, min_new, max_new, length_penalty, early_stopping: see ``generate_text``; None: as the model says
        (``generation_config``), or else as in the release: 2 beams, 8 to 36 tokens, penalty 1, no early stopping. Of
        the model's own lengths, one that contradicts the other, which is given, makes way. cut: what is made of a text;
        the release's by default.
    image_seeds: of the selection of patches, one an image; None: no noise, where the release always has some, so that
        its captions of an image vary. batch_size: images at a time. A caption does not depend on the others of its
        batch, beyond rounding.
    on_error: "raise" an error that names the image, or "skip" it: see ``Texts.skipped``.

    Raises ValueError or TypeError naming the image that cannot be read, is not finite or does not fit the context;
    ValueError for settings out of range; whatever ``on_error`` is, NonFiniteScores, a ValueError naming the image and
    the token for which the model gave NaN or infinite scores.
    """
    prompts = [[image] for image in _pictures(images)]
    settings = own_settings(model, "caption").changed(
        num_beams=num_beams,
        min_new=min_new,
        max_new=max_new,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    reading = {"image_seeds": image_seeds, "batch_size": batch_size, "on_error": on_error}
    return _write(model, processor, prompts, cut, settings, what="image", **reading)


def answer(
    model: Model,
    images: Any,
    questions: Sequence[str],
    processor: LaVITProcessor,
    *,
    template: str = QUESTION,
    num_beams: int | None = None,
    min_new: int | None = None,
    max_new: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | None = None,
    cut: Callable[[str], str] = cut_answer,
    lemmatize: Callable[[str], str] | None = None,
    image_seeds: Tensor | Sequence[int] | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
) -> Texts:
    """Answer a question about each image: ``[IMG] features [/IMG] Question: ... Answer:``, and the best beam after it.

    questions: one for each image. template: how to ask, ``{}`` is the question.
    num_beams, min_new, max_new, length_penalty, early_stopping: as in :func:`caption`; the model says it in
        ``answer_generation_config``, and else the release: 5 beams, 2 to 10 tokens, penalty 0, and early stopping as
        ``config.answer_early_stopping`` has it, True for the released model.
    cut: what is made of a text, by default as in the release: cut, and in lower case. lemmatize: what is made of that;
        the release's is ``lavit.language.spacy_lemmatizer()``, None leaves it. Others: see :func:`caption`.

    Raises as :func:`caption`, and ValueError for another number of questions and naming an empty one.
    """
    if isinstance(questions, str):
        raise ValueError(f"questions: expected a list of texts, got the text {questions!r}")
    pictures = _pictures(images)
    if len(pictures) != len(questions):
        raise ValueError(f"questions: expected one for each of {len(pictures)} images, got {len(questions)}")
    prompts = list(zip(pictures, questions, strict=True))
    settings = own_settings(model, "answer").changed(
        num_beams=num_beams,
        min_new=min_new,
        max_new=max_new,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    reading = {"image_seeds": image_seeds, "batch_size": batch_size, "on_error": on_error}
    made = cut if lemmatize is None else lambda text: lemmatize(cut(text))
    return _write(model, processor, prompts, made, settings, what="item", template=template, **reading)


@torch.no_grad()
def _write(
    model: Model,
    processor: LaVITProcessor,
    prompts: Sequence[Sequence[Any]],
    cut: Callable[[str], str],
    settings: TextSettings,
    **reading: Any,
) -> Texts:
    """reading: arguments of the ``PromptReader``."""
    reader = PromptReader(model, processor, prompts, new_tokens=settings.max_new, **reading)
    eos = processor.tokenizer.eos_token_id
    if eos is None:
        raise ValueError("processor: expected a tokenizer with an eos_token_id, which ends a text, got None")
    texts: list[str] = []
    indices: list[int] = []
    for batch in reader.batches(range(len(prompts))):
        with reader.naming(batch.firsts):
            found = generate_text(model.language_model, model.vocabulary, batch.rows, eos_id=eos, **asdict(settings))
        written = [cut(text) for text in processor.decode_text(found)]
        texts += [written[place] for place in batch.of]
        indices += batch.numbers
    return Texts(texts, indices, sorted(reader.skipped))


@torch.no_grad()
def generate_tokens(
    model: Model,
    prompts: Sequence[Any],
    processor: LaVITProcessor,
    settings: SamplingSettings | None = None,
    *,
    seeds: Tensor | Sequence[int] | None = None,
    scorer: Scorer | None = None,
    prompt_images: str | None = None,
    image_seeds: Tensor | Sequence[int] | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
    **changes: Any,
) -> GeneratedTokens:
    """Draw images for prompts, as codes of the visual tokenizer: the prompt, ``[IMG]``, and what the model draws then.

    Codes and ``[/IMG]`` alone are drawn; the release also leaves ids 0 to 2 and ``[IMG]``, which mean nothing there.

    prompts: each a string, an image, or a list of strings and images in any order; images as in :func:`caption`, but
        paths are ``pathlib.Path``, since a string is text. Nothing is put between the pieces. Prompts that are alike,
        of the same texts and image objects, are read once for each batch, as the samples of one are.
    settings: by default the release's, with guidance 4, and 5 for prompts that hold images, or the model's own
        (``config.image_sampling``) where it has some. changes: single ones of them, ``num_samples=4, top_k=200``. There
        are never more codes than the decoder has positions.
    seeds: of the samples, len(prompts) * num_samples, those of a prompt one after the other, of skipped ones too; drawn
        from torch's generator of the CPU if None. A sample depends on its seed and prompt alone, beyond rounding.
    scorer: keeps the best of each prompt's samples. It is given each sample's prompt, as it was given here, and the
        features decoded from its codes.
    prompt_images: how the images of the prompts are shown: "features", ``[IMG] features [/IMG]``, "codes",
        ``[IMG] codes [/IMG]``, or "bare_codes", without markers, as the release does. None: as the model says
        (``config.prompt_images``): bare codes for the released one, for one trained here what it was trained with.
    image_seeds: of the selection, one for each image of all prompts; None: no noise, where the release always has some.
        batch_size: prompts at a time.
    on_error: "raise" an error that names the prompt, or "skip" it: see ``GeneratedTokens.skipped``.

    Raises ValueError or TypeError naming the prompt that is empty, holds an image that cannot be read, or does not fit
    the context with its images and the codes to come; ValueError for a wrong number of seeds or scores, settings out of
    range, and a model that regresses embeddings; whatever ``on_error`` is, NonFiniteScores, a ValueError naming the
    prompt and the token for which the model gave NaN or infinite scores. TypeError for seeds that are no integers.
    """
    if model.config.image_objective != "classify":
        raise ValueError("image_objective: expected a model that predicts codes, got one of 'regress'")
    if isinstance(prompts, str):
        raise ValueError(f"prompts: expected a list of prompts, got the text {prompts!r}")
    pieces = [list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] for prompt in prompts]
    shows = [not all(isinstance(piece, str) for piece in prompt) for prompt in pieces]
    own_settings = model.config.image_sampling
    chosen = {
        False: replace(settings or SamplingSettings(**own_settings), **changes),
        True: replace(settings or SamplingSettings(**{"guidance": MULTIMODAL_GUIDANCE, **own_settings}), **changes),
    }
    samples, positions = chosen[False].num_samples, model.visual_tokenizer.num_patches
    seeds = _sample_seeds(seeds, len(pieces), samples)
    reader = PromptReader(
        model,
        processor,
        pieces,
        what="prompt",
        new_tokens=min(chosen[False].max_tokens, positions),
        batch_size=batch_size,
        on_error=on_error,
        ending=[model.vocabulary.begin_id],
        image_seeds=image_seeds,
        shown_as=model.config.prompt_images if prompt_images is None else prompt_images,
    )
    found: dict[int, list[Tensor]] = {}
    scores: dict[int, Tensor] = {}
    for multimodal, setting in chosen.items():
        for kept, of, embedded in reader.batches([i for i, shown in enumerate(shows) if shown == multimodal]):
            with reader.naming(kept):
                drawn = sample_image_tokens(
                    model.language_model,
                    model.vocabulary,
                    embedded,
                    setting,
                    seeds=seeds[kept].flatten().to(embedded.values.device),
                    max_codes=positions,
                    of=of,
                )
            rows = drawn.unbind()
            own = {index: rows[place * samples : (place + 1) * samples] for place, index in enumerate(kept)}
            if scorer is not None:
                judged = _scores(scorer, [prompts[i] for i in kept for _ in range(samples)], _decode(model, drawn))
                scores |= dict(zip(kept, judged.view(len(kept), samples), strict=True))
                own = {index: [codes[int(scores[index].argmax())]] for index, codes in own.items()}
            found |= own
    order = sorted(found)
    return GeneratedTokens(
        _ragged([codes for index in order for codes in found[index]], model),
        [index for index in order for _ in found[index]],
        sorted(reader.skipped),
        torch.stack([scores[index] for index in order]) if scores else None,
    )


def generate_features(
    model: Model,
    prompts: Sequence[Any],
    processor: LaVITProcessor,
    *arguments: Any,
    batch_size: int = 32,
    **settings: Any,
) -> GeneratedTokens:
    """As :func:`generate_tokens`, and the codes decoded: ``features`` (n, N, C_out), of which pixels are made."""
    drawn = generate_tokens(model, prompts, processor, *arguments, batch_size=batch_size, **settings)
    rows = drawn.codes.unbind()
    parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)] or [[]]
    return replace(drawn, features=torch.cat([_decode(model, _ragged(part, model)) for part in parts]))


@torch.no_grad()
def _decode(model: Model, codes: Ragged) -> Tensor:
    return model.visual_tokenizer.decode(codes)


def _ragged(codes: list[Tensor], model: Model) -> Ragged:
    return Ragged.from_list(codes) if codes else no_ids().to(model.language_model.lm_head.weight.device)


def _scores(scorer: Scorer, prompts: list[Any], features: Tensor) -> Tensor:
    """(n,) float64 on the CPU."""
    scores = torch.as_tensor(scorer(prompts, features), dtype=torch.float64).detach().cpu()
    if scores.shape != (len(prompts),):
        raise ValueError(f"scorer: expected {len(prompts)} scores, one a sample, got shape {tuple(scores.shape)}")
    if scores.isnan().any():
        raise ValueError(f"scorer: gave NaN for a sample of {prompts[int(scores.isnan().int().argmax())]!r}")
    return scores


def _sample_seeds(seeds: Tensor | Sequence[int] | None, prompts: int, samples: int) -> Tensor:
    """(prompts, samples) int64 on the CPU."""
    if seeds is None:
        return torch.randint(*SEED_RANGE, (prompts, samples), dtype=torch.int64)
    seeds = as_seeds("seeds", seeds).cpu()
    if seeds.shape != (prompts * samples,):
        raise ValueError(
            f"seeds: expected {prompts * samples}, {samples} for each of {prompts} prompts, got {tuple(seeds.shape)}"
        )
    return seeds.view(prompts, samples)


def _pictures(images: Any) -> list[Any]:
    """Single images, as a processor takes them in a prompt: a string is a path here."""
    if isinstance(images, Tensor) and images.is_floating_point() and images.dim() == 4:
        return list(images.split(1))
    return [Path(image) if isinstance(image, str) else image for image in one_by_one(images)]
