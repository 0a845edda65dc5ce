"""One vocabulary for text and images: text ids first, then [IMG], [/IMG] and the codes, as the release has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Vocabulary:
    """Which ids are text, markers and codes.

    text_size: number of text ids, 0 to text_size - 1 (LLaMA-2: 32000). num_codes: K of the visual tokenizer (16384).
    The release's layout: 32000 [IMG], 32001 [/IMG], code k = 32002 + k; 48386 ids in all. Raises ValueError for a size
    below 1.
    """

    text_size: int
    num_codes: int

    def __post_init__(self) -> None:
        for name in ("text_size", "num_codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {getattr(self, name)}")

    @property
    def begin_id(self) -> int:
        """[IMG]: an image begins."""
        return self.text_size

    @property
    def end_id(self) -> int:
        """[/IMG]: an image has ended."""
        return self.text_size + 1

    @property
    def first_code_id(self) -> int:
        """Code 0; code k is at ``first_code_id + k``."""
        return self.text_size + 2

    @property
    def size(self) -> int:
        """Number of ids in use."""
        return self.text_size + 2 + self.num_codes


@torch.no_grad()
def grow_vocabulary(language_model: LlamaForCausalLM, text_size: int, size: int) -> None:
    """Give input embeddings and head the rows ``text_size`` to ``size``, drawn as if they were more of the old ones.

    A new row is mean + sum_i z_i (old_i - mean) / sqrt(text_size) with normal z: the old rows' mean and covariance, for
    any size (transformers' own ``mean_resizing`` gives all new rows nearly the mean, so that the codes would start
    alike). Rows that exist beyond ``text_size``, the padding of a checkpoint, are drawn anew too. By torch's generator.
    """
    if language_model.config.vocab_size < size:
        language_model.resize_token_embeddings(size, mean_resizing=False)
    weights = [language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight]
    for weight in weights[: 1 if weights[0] is weights[1] else 2]:
        old = weight[:text_size].float()
        mean = old.mean(dim=0)
        centred = (old - mean) / text_size**0.5
        for rows in weight[text_size:size].split(4096):  # the normal numbers of all rows at once may be gigabytes
            rows.copy_(mean + torch.randn(rows.shape[0], text_size, device=weight.device) @ centred)
