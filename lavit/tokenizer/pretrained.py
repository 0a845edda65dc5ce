"""Loading as transformers does it, but strict: what every model of this library has in common."""

from __future__ import annotations

from os import PathLike
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel


class StrictModel(PreTrainedModel):
    """A transformers model whose checkpoints must fit, and which freezes what is not trained."""

    def freeze(self) -> None:
        """Keep what is not trained from the optimizer. Loading a model does it."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[Any] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """transformers' method, but strict: a checkpoint that lacks or adds tensors, or has one of another shape, is
        refused with a ValueError that names all of them."""
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.update(output_loading_info=True, ignore_mismatched_sizes=True)
        source = pretrained_model_name_or_path
        try:
            loaded: Any = super().from_pretrained(source, *model_args, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"{source}: a weights file is damaged ({error})") from error
        model, info = loaded
        model.freeze()
        wrong_shape = [f"{name} (file {tuple(a)}, model {tuple(b)})" for name, a, b in info["mismatched_keys"]]
        message = describe_tensors(info["missing_keys"], info["unexpected_keys"], wrong_shape)
        if message:
            raise ValueError(f"{source}: the weights do not fit the configuration: {message}")
        return loaded if wants_info else model


def describe_tensors(missing: Any, unexpected: Any, wrong_shape: Any = ()) -> str:
    """All the names at fault, sorted, in one line per fault; empty when there is none."""
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong_shape))
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in faults if names)
