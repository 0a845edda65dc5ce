"""What every way of generating asks of its prompts, and what it makes of the ids."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from lavit.kernels import Ragged, unpad
from lavit.kernels.checks import check_offsets, check_same_device
from lavit.language.configuration import check_rotation
from lavit.language.vocabulary import Vocabulary

NO_FAULT = 2**63 - 1


class NonFiniteScores(ValueError):
    """A model gave no finite best score for a prompt's next token: NaN, +inf, or nothing but -inf.

    prompt, token: which prompt, and which of its new tokens, from 0. what: how the prompt is called. The weights hold
    NaN or Inf, or a sum is beyond the range of its dtype, as in float16.
    """

    def __init__(self, prompt: int, token: int, what: str = "prompt") -> None:
        super().__init__(prompt, token, what)
        self.prompt = prompt
        self.token = token
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} {self.prompt}: expected finite scores for new token {self.token}, got NaN or Inf"


def first_fault(bad: Tensor, token: Tensor | int, row: Tensor, count: int) -> Tensor:
    """() int64: token * count + row of the first token at fault, of the first row among those of it; else NO_FAULT.

    bad: (r,) bool, the rows that have no finite best score. token: of each, or of all. row: (r,) int64, of ``count``.
    """
    return torch.where(bad, token * count + row, NO_FAULT).amin()


def check_fault(first: int, count: int, rows: int) -> None:
    """Raises NonFiniteScores for what ``first_fault`` has found, if anything. rows: to a prompt."""
    if first != NO_FAULT:
        token, row = divmod(first, count)
        raise NonFiniteScores(row // rows, token)


def embed_prompts(
    language_model: LlamaForCausalLM, vocabulary: Vocabulary, prompts: Ragged, new_tokens: int, *, image: bool
) -> tuple[Ragged, list[int]]:
    """Checked prompts as embeddings in the model's dtype, without unused rows, and their lengths on the host.

    prompts: embeddings (T, H) or int64 ids (T,). new_tokens: how many are going to be generated; the last one is not
    read again. image: the prompts are to be continued with an image, so those given as ids end with [IMG].
    One host synchronisation, two where the prompts are ids.
    Raises ValueError naming the prompt that is empty, does not fit the model's positions, holds an id outside the
    vocabulary or, with ``image``, does not end with [IMG]; for a model whose rotation depends on other samples (see
    ``check_rotation``); TypeError for values that are neither.
    """
    check_rotation(language_model.config)
    values, cu_seqlens = prompts.values, prompts.cu_seqlens
    check_offsets("prompts.cu_seqlens", cu_seqlens, values.device)
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    if not lengths:
        raise ValueError("prompts: expected at least one prompt, got none")
    positions = language_model.config.max_position_embeddings
    for b, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"prompt {b}: expected at least one token, got an empty prompt")
        if length > positions:
            raise ValueError(f"prompt {b}: expected at most {positions} tokens, the model's context, got {length}")
        if length + new_tokens - 1 > positions:
            raise ValueError(
                f"prompt {b}: {length} tokens and up to {new_tokens} generated ones need a cache of "
                f"{length + new_tokens - 1} positions, but max_position_embeddings is {positions}"
            )
    values = values[: bounds[-1]]
    embedding = language_model.model.embed_tokens
    check_same_device("prompts", values, "language_model", embedding.weight)
    width = embedding.weight.shape[1]
    if values.is_floating_point():
        if values.dim() != 2 or values.shape[1] != width:
            raise ValueError(f"prompts: expected embeddings of shape (T, {width}), got {tuple(values.shape)}")
        values = values.to(embedding.weight.dtype)
    elif values.dtype == torch.int64:
        if values.dim() != 1:
            raise ValueError(f"prompts: expected ids of shape (T,), got {tuple(values.shape)}")
        _check_ids(values, cu_seqlens, lengths, vocabulary, image)
        values = embedding(values)
    else:
        raise TypeError(f"prompts: expected embeddings or int64 ids, got {values.dtype}")
    return Ragged(values, cu_seqlens, max(lengths)), lengths


def _check_ids(ids: Tensor, cu_seqlens: Tensor, lengths: list[int], vocabulary: Vocabulary, image: bool) -> None:
    outside = ((ids < 0) | (ids >= vocabulary.size)).int()
    first = outside.argmax()
    last = ids[cu_seqlens[1:].long() - 1]
    wrong, place, found, *ends = torch.cat((torch.stack((outside.max(), first, ids[first])), last)).tolist()
    if wrong:
        prompt = 0
        while place >= lengths[prompt]:
            place -= lengths[prompt]
            prompt += 1
        raise ValueError(f"prompt {prompt}: expected ids 0 to {vocabulary.size - 1}, got {found} as token {place}")
    for b, end in enumerate(ends):
        if image and end != vocabulary.begin_id:
            raise ValueError(f"prompt {b}: expected [IMG] ({vocabulary.begin_id}) as the last id, got {end}")


def first_of_rows(ids: Tensor, lengths: Tensor) -> Ragged:
    """The first ``lengths`` (R,) of every row of ids (R, L), packed. One host synchronisation."""
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
    total, longest = torch.stack((lengths.sum(), lengths.max())).tolist()
    return Ragged(unpad(ids, cu_seqlens, total=total), cu_seqlens, longest)
