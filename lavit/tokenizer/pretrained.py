"""Loading as transformers does it, but strict: what every model of this library has in common."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel


class StrictModel(PreTrainedModel):
    """A transformers model whose checkpoints must fit, and which freezes what is not trained."""

    def freeze(self) -> None:
        """Keep what is not trained from the optimizer. Loading a model does it."""
        raise NotImplementedError

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """transformers' method. RuntimeError where ``for_inference`` has rounded weights, of a part too."""
        for module in self.modules():
            mode = getattr(module, "mode", None)
            if isinstance(module, StrictModel) and getattr(mode, "rounded", False):
                raise RuntimeError(f"save_pretrained: the weights are rounded for inference ({mode}); save before")
        super().save_pretrained(*args, **kwargs)

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
        check_fit(f"{source}: the weights do not fit the configuration", info)
        return loaded if wants_info else model


def check_fit(what: str, info: Mapping[str, Any]) -> None:
    """ValueError of ``what`` and all the names at fault, sorted, where tensors do not fit.

    info: the account that ``from_pretrained`` of transformers or diffusers gives.
    """
    wrong_shape = [f"{name} (file {tuple(a)}, model {tuple(b)})" for name, a, b in info["mismatched_keys"]]
    faults = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"], "of another shape": wrong_shape}
    if any(faults.values()):
        told = "; ".join(f"{fault}: {', '.join(sorted(names))}" for fault, names in faults.items() if names)
        raise ValueError(f"{what}: {told}")


def compare(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The account that :func:`check_fit` takes, of tensors that are not loaded yet."""
    wanted = model.state_dict()
    both = [(name, tensor.shape, wanted[name].shape) for name, tensor in state.items() if name in wanted]
    return {
        "missing_keys": wanted.keys() - state.keys(),
        "unexpected_keys": state.keys() - wanted.keys(),
        "mismatched_keys": [entry for entry in both if entry[1] != entry[2]],
    }
