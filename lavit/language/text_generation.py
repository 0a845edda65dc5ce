"""Text after packed prompts: a beam search over text ids, with the ids of images suppressed.

It is the release's search, that of its transformers (4.33), for which a begin-of-sequence token counts in a text's
length although a prompt of embeddings has none. With log-probability s and length penalty p, a text that has ended
after n tokens, its end counted, scores ``s / n^p``; one that is cut off after n tokens ``s / (n + 1)^p``. A search is
over when ``num_beams`` texts have ended and the likeliest candidate of n tokens, as ``s / (n + 1)^p``, exceeds none of
them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from lavit.kernels import Ragged, pad
from lavit.kernels.types import compute_dtype
from lavit.language.cache import CACHE, PromptCache
from lavit.language.generation_inputs import NO_FAULT, check_fault, embed_prompts, first_fault, first_of_rows
from lavit.language.vocabulary import Vocabulary


@torch.no_grad()
def generate_text(
    language_model: LlamaForCausalLM,
    vocabulary: Vocabulary,
    prompts: Ragged,
    *,
    num_beams: int = 2,
    min_new: int = 8,
    max_new: int = 36,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    eos_id: int,
) -> Ragged:
    """The best beam's text for each prompt.

    prompts: B prompts as embeddings (T, H) or int64 ids (T,). num_beams, min_new, max_new, length_penalty,
    early_stopping: the release's for captions by default (2 beams, 8 to 36 tokens); for answers 5 beams, 2 to 10
    tokens, length penalty 0 and early stopping. A beam's score is its log-probability over its length to the power
    ``length_penalty``, with the release's lengths (see this module). early_stopping: end with the first ``num_beams``
    texts that have ended, though a longer one might be better; one beam always does. eos_id: the text id that ends a
    text; not before ``min_new`` tokens.

    Ids of images are suppressed after the log-softmax over the vocabulary, as in the release: what a beam gives to
    images counts against it.

    Returns B sequences of text ids 0..text_size-1 without ``eos_id``, int64. They do not depend on the other prompts
    of the batch beyond rounding (see ``sample_image_tokens``).
    Raises ValueError for a number out of range, for a model whose rotation depends on the batch (``check_rotation``),
    and naming the prompt that is empty, too long or holds an id outside the vocabulary. Raises NonFiniteScores, a
    ValueError with the numbers of prompt and token, where a beam's best score is NaN or infinite.
    """
    for name, number in (("num_beams", num_beams), ("max_new", max_new)):
        if number < 1:
            raise ValueError(f"{name}: expected a number >= 1, got {number}")
    if 2 * num_beams > vocabulary.text_size:
        raise ValueError(f"num_beams: expected at most half of {vocabulary.text_size} text ids, got {num_beams}")
    if not 0 <= min_new <= max_new:
        raise ValueError(f"min_new: expected 0 to max_new = {max_new}, got {min_new}")
    if not 0 <= eos_id < vocabulary.text_size:
        raise ValueError(f"eos_id: expected a text id, 0 to {vocabulary.text_size - 1}, got {eos_id}")
    embedded, _ = embed_prompts(language_model, vocabulary, prompts, max_new, image=False)
    reader = _Reader(language_model, vocabulary, embedded, num_beams)
    logits = reader.prompts()
    search = _Search(logits, num_beams, max_new, length_penalty, early_stopping or num_beams == 1, eos_id)
    for token in range(max_new):
        scores = logits.log_softmax(-1)[:, : vocabulary.text_size]
        if token < min_new:
            scores[:, eos_id] = -torch.inf
        rows = search.extend(scores, token)
        # Nothing ends before min_new tokens: until then the host need not ask.
        if token + 1 == max_new or (token >= min_new and search.done.all()):
            break
        logits = reader.step(rows, search.last(token))
    check_fault(int(search.fault), embedded.batch_size * num_beams, num_beams)
    ids = search.best()
    return first_of_rows(ids, (ids == eos_id).cumsum(1).eq(0).sum(1))


class _Reader:
    """The model over B prompts, each read once, and then ``beams`` texts after each, one token at a time.

    Rows of the head that stand for no id take no part: logits are (rows, vocabulary.size).
    """

    def __init__(
        self, language_model: LlamaForCausalLM, vocabulary: Vocabulary, embedded: Ragged, num_beams: int
    ) -> None:
        self.model, self.size, self.beams = language_model, vocabulary.size, num_beams
        self.padded, mask, self.positions = pad(embedded, side="left")
        self.mask = mask.long()
        self.cache = PromptCache(mask)

    def prompts(self) -> Tensor:
        """Logits of the first token, the same for all beams of a prompt: (B * beams, size)."""
        logits = self._forward(inputs_embeds=self.padded, position_ids=self.positions)
        self.positions = self.positions[:, -1:].repeat_interleave(self.beams, dim=0)
        self.mask = self.mask.repeat_interleave(self.beams, dim=0)
        if self.beams > 1:
            self.cache.batch_repeat_interleave(self.beams)
        return logits.repeat_interleave(self.beams, dim=0)

    def step(self, rows: Tensor, ids: Tensor) -> Tensor:
        """The texts become those of these rows (B * beams,), each with a token (B * beams,) more."""
        if self.beams > 1:
            self.cache.reorder_cache(rows)  # type: ignore[arg-type]  # declared for a class that no tensor is of
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(ids), 1)), dim=1)
        self.positions = self.positions + 1
        return self._forward(input_ids=ids[:, None], position_ids=self.positions)

    def _forward(self, **inputs: Tensor) -> Tensor:
        arguments = {"attention_mask": self.mask, "use_cache": True, "logits_to_keep": 1, CACHE: self.cache}
        logits = self.model(**inputs, **arguments).logits[:, -1, : self.size]
        return logits.to(compute_dtype(logits))


class _Search:
    """Beams of B prompts, W each, and the W best texts of each that have ended.

    score: (B, W) log-probabilities of the beams; ids: (B, W, max_new), eos_id after what is written. ended, ended_ids:
    the same of ended texts, scores by length; -inf where there is none. done: (B,) bool, nothing can be added.
    fault: () int64 of ``first_fault``.
    """

    def __init__(self, like: Tensor, beams: int, max_new: int, penalty: float, early: bool, eos_id: int) -> None:
        """like: (B * W, V), of the scores' dtype and device. early: done with the first W texts that have ended."""
        self.penalty, self.early, self.eos_id = penalty, early, eos_id
        batch = len(like) // beams
        self.shape = (batch, beams, max_new)
        # The beams of a prompt begin alike: only the first one is extended.
        self.score = like.new_full((batch, beams), -1e9)
        self.score[:, 0] = 0
        self.ids = torch.full(self.shape, self.eos_id, dtype=torch.int64, device=like.device)
        self.ended, self.ended_ids = like.new_full((batch, beams), -torch.inf), self.ids
        self.done = torch.zeros(batch, dtype=torch.bool, device=like.device)
        self.fault = torch.full((), NO_FAULT, device=like.device)
        self.first_row = torch.arange(batch, device=like.device)[:, None] * beams

    def extend(self, scores: Tensor, token: int) -> Tensor:
        """scores (B * W, text ids) of new token ``token`` -> (B * W,) the row that each beam goes on from."""
        batch, beams, _ = self.shape
        # What becomes of a prompt whose texts are found is no fault.
        bad = ~scores.amax(1).isfinite() & ~self.done.repeat_interleave(beams)
        row = torch.arange(len(bad), device=bad.device)
        self.fault = torch.minimum(self.fault, first_fault(bad, token, row, len(bad)))
        text_size = scores.shape[1]
        score, place = (scores.view(batch, beams, -1) + self.score[..., None]).flatten(1).topk(2 * beams)
        parent, word = place // text_size, place % text_size
        ids = self.ids.gather(1, parent[..., None].expand(-1, -1, self.shape[2]))
        ids[:, :, token] = word
        is_end = word == self.eos_id
        ends = is_end & ~self.done[:, None]
        ends[:, beams:] = False
        self._add(torch.where(ends, score / (token + 1) ** self.penalty, -torch.inf), ids)
        full = self.ended[:, -1] > -torch.inf
        best_yet = score[:, 0] / (token + 2) ** self.penalty
        self.done = self.done | (full if self.early else full & (self.ended[:, -1] >= best_yet))
        # Of 2 W candidates at most W end, one a beam: the likeliest W others are the beams.
        order = torch.arange(2 * beams, device=ids.device)
        going_on = torch.where(is_end, order + 2 * beams, order).argsort(dim=1)[:, :beams]
        self.score = score.gather(1, going_on)
        self.ids = ids.gather(1, going_on[..., None].expand(-1, -1, self.shape[2]))
        return (self.first_row + parent.gather(1, going_on)).flatten()

    def last(self, token: int) -> Tensor:
        """(B * W,) the token that each beam has been given."""
        return self.ids[:, :, token].flatten()

    def best(self) -> Tensor:
        """(B, max_new): the best text of each prompt; those that were cut off count where a search has not ended."""
        cut_off = self.score / (self.shape[2] + 1) ** self.penalty
        self._add(cut_off.masked_fill(self.done[:, None], -torch.inf), self.ids)
        return self.ended_ids[:, 0]

    def _add(self, score: Tensor, ids: Tensor) -> None:
        """Keep the best W of the ended texts and these, the best first."""
        score, ids = torch.cat((self.ended, score), dim=1), torch.cat((self.ended_ids, ids), dim=1)
        self.ended, place = score.topk(self.shape[1])
        self.ended_ids = ids.gather(1, place[..., None].expand(-1, -1, self.shape[2]))
