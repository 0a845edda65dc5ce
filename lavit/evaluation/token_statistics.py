"""How a tokenizer spends its tokens, and how well they give the features back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lavit.tokenizer import LaVITTokenizer


@dataclass(frozen=True)
class TokenStatistics:
    """What happened to n images on the way through the tokens and back.

    decoded: (n, N, C) features from the tokens. keep: (n, N) bool. tokens: (n,) int64 tokens of each image.
    cosines: (n,) mean over the patches of the cosine between decoded and true feature.
    code_counts: (K,) int64 uses of each code.
    """

    decoded: Tensor
    keep: np.ndarray
    tokens: np.ndarray
    cosines: np.ndarray
    code_counts: np.ndarray

    @property
    def codes_used(self) -> int:
        return int((self.code_counts > 0).sum())


@torch.no_grad()
def tokenize_and_decode(
    tokenizer: LaVITTokenizer,
    features: Tensor,
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> TokenStatistics:
    """Deterministic tokens of features (n, N, C), as `encode_features` gives them, and what they decode to.

    ``progress`` gets how many are done, of how many. Raises ``ValueError`` for an empty set.
    """
    if len(features) == 0:
        raise ValueError("features: expected at least one image, got none")
    counts = torch.zeros(tokenizer.config.num_codes, dtype=torch.int64)
    decoded, keep, cosines = [], [], []
    for part in features.split(batch_size):
        tokens = tokenizer.encode(features=part, deterministic=True)
        back = tokenizer.decode(tokens)
        decoded.append(back)
        keep.append(tokens.keep.cpu())
        cosines.append(F.cosine_similarity(back.float(), part.float(), dim=-1).mean(1).cpu())
        counts += torch.bincount(tokens.ids.cpu().clamp(min=0), minlength=len(counts))
        if progress is not None:
            progress(sum(map(len, decoded)), len(features))
    kept = torch.cat(keep).numpy()
    return TokenStatistics(torch.cat(decoded), kept, kept.sum(1), torch.cat(cosines).numpy(), counts.numpy())


def tokens_by_objects(objects: np.ndarray, tokens: np.ndarray) -> dict[int, list[int]]:
    """objects (n,) in each image and its tokens (n,) -> for each number of objects, the tokens of its images."""
    if len(objects) != len(tokens):
        raise ValueError(f"tokens: expected one number for each of {len(objects)} images, got {len(tokens)}")
    return {int(k): tokens[objects == k].tolist() for k in np.unique(objects)}
