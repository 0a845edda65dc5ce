"""Loading as diffusers does it, but strict: what every model of the pixel stage has in common."""

from __future__ import annotations

import sys
from collections.abc import Callable
from os import PathLike
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from lavit.tokenizer.pretrained import check_fit


class StrictPart(ModelMixin):
    """A diffusers model whose weights must fit."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any) -> Any:
        """diffusers' method, but strict: weights that lack or add tensors, or have one of another shape, are refused
        with a ValueError that names all of them."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = load_strictly(super().from_pretrained, pretrained_model_name_or_path, **kwargs)
        return (model, info) if wants_info else model


def load_strictly(load: Callable[..., Any], source: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """The model and the account of a diffusers model's ``from_pretrained``. ValueError where tensors do not fit."""
    model, info = load(source, **kwargs, output_loading_info=True, ignore_mismatched_sizes=True)
    check_fit(f"{source}: the tensors do not fit the model", info)
    return model, info


def public_name(entry: Any) -> Any:
    """A component's (module, class) with ``lavit`` for the module where the class is one of its public names."""
    if isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str):
        module, name = entry
        if module.split(".")[0] == "lavit" and name in sys.modules["lavit"].__all__:
            return ("lavit", name)
    return entry
