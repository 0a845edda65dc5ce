"""Frozen image encoders of other libraries: any timm model, and the vision models of transformers.

    timm:vit_small_patch16_224          with the weights that timm publishes
    timm:vit_small_patch16_224@FILE     with those of a file (.safetensors, .pth, .bin), or of a folder that holds one
    transformers:FOLDER_OR_NAME         a folder of transformers (ViT, DINOv2, CLIP, SigLIP, ...), or a name of the hub

The features are the model's last ones, behind its final norm where it has one, without class token and registers. What
is needed to build the model again stands in the tokenizer's configuration, ``external_encoder``; its weights are saved
with the tokenizer's, so that a saved tokenizer needs neither network nor hub. A configuration may come from anybody: it
names models of the two libraries and their sizes, and whatever would load other files or run other code is refused.
"""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lavit.tokenizer.encoder_names import LIBRARIES
from lavit.tokenizer.pretrained import check_fit, compare

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
KEYS = {"library", "model", "source", "mean", "std", "prefix", "class_token", "size"}
"""What the configuration says of an external encoder. library: "timm" or "transformers". model: {"name", "arguments"}
of timm, where img_size is the only argument that there may be, or the configuration of transformers. source: where it
came from, in words. mean, std: of the pixels, None where nothing says them (CLIP's are taken then). prefix: rows in
front of the patches, of which the first is the class token where class_token says so. size: {"image_size",
"patch_size", "hidden_size"}."""


def check_external(encoder: str) -> None:
    """Whatever the words alone get wrong: ImportError without timm, FileNotFoundError, ValueError for no name."""
    library, _, rest = encoder.partition(":")
    name, at, place = rest.partition("@") if library == "timm" else (rest, "", "")
    if not name or (at and not place):
        raise ValueError(f"encoder: expected timm:NAME, timm:NAME@FILE or transformers:FOLDER, got {encoder!r}")
    if library == "timm":
        if ":" in name:
            raise ValueError(
                f"encoder: expected a name of timm's own, got {name!r}; of a model elsewhere take the architecture and "
                "the file of its weights, timm:NAME@FILE"
            )
        if not _is_timms(name):
            near = _timm().list_models(f"*{name.split('_')[0]}*")[:3]
            hint = f" (there are {', '.join(near)}, ...)" if near else ""
            raise ValueError(f"encoder: timm has no model {name!r}{hint}")
        if at:
            _weights_file(Path(place))
    elif Path(name).exists() and not Path(name).is_dir():
        raise NotADirectoryError(f"encoder: expected a folder of transformers, got the file {name}")


def open_external(encoder: str, image_size: int | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the configuration has to say of an encoder named as above, and its weights.

    image_size: side in pixels where it is to be another than the model's own; positions are interpolated where the
    model can do that. Raises ValueError for a model whose features are not those of a square grid of patches, and what
    `check_external` raises.
    """
    check_external(encoder)
    library, _, rest = encoder.partition(":")
    model, described = _from_timm(rest, image_size) if library == "timm" else _from_transformers(rest, image_size)
    size = described["size"]["image_size"]
    model.eval()
    with torch.no_grad():
        rows = _features(model, library, torch.zeros(1, 3, size, size), described.pop("own_size"))
    described["size"] |= {"hidden_size": rows.shape[-1]}
    prefix = described["prefix"]
    if prefix is None:
        # What no attribute tells: as many patches as fill the grid.
        patch = described["size"].get("patch_size")
        prefix = rows.shape[1] - (size // patch) ** 2 if patch else 0
    side = round(max(rows.shape[1] - prefix, 0) ** 0.5)
    if prefix < 0 or side**2 + prefix != rows.shape[1] or side == 0 or size % side:
        raise ValueError(
            f"encoder: {encoder} gives {rows.shape[1]} rows for {size} x {size} pixels, which are no square grid of "
            f"patches behind {prefix} others"
        )
    described["size"]["patch_size"] = size // side
    if described["class_token"] is None:
        described["class_token"] = prefix > 0
    described |= {"library": library, "source": encoder, "prefix": prefix}
    return described, model.state_dict()


def check_described(described: Any) -> None:
    """ValueError where a configuration's ``external_encoder`` is not of the form above, or names more than a model of
    the library. ImportError without timm, for one of timm's."""
    keys = set(described) if isinstance(described, Mapping) else None
    if keys != KEYS or described["library"] not in LIBRARIES or not isinstance(described["model"], Mapping):
        raise ValueError(f"external_encoder: expected a mapping with {', '.join(sorted(KEYS))}, got {described!r}")
    model = described["model"]
    if described["library"] == "transformers":
        _check_own(model)
        return
    name, arguments = model.get("name"), model.get("arguments")
    if not isinstance(name, str) or not _is_timms(name):
        raise ValueError(f"external_encoder: expected the name of a model of timm, got {name!r}")
    # timm's create_model takes files to load among its arguments.
    given = arguments.items() if isinstance(arguments, Mapping) else [("arguments", arguments)]
    if not all(key == "img_size" and type(value) is int for key, value in given):
        raise ValueError(f"external_encoder: expected at most img_size, a whole number, for {name}, got {arguments!r}")


def _is_timms(name: str) -> bool:
    """Whether timm has a model of this name in its own list: no hub's, no folder's."""
    return re.fullmatch(r"[\w.-]+", name) is not None and _timm().is_model(name)


ELSEWHERE = ("auto_map", "trust_remote_code", "backbone", "use_timm_backbone", "use_pretrained_backbone")
"""Of a configuration of transformers: what has it run the code of a repository, or load another model."""


def _check_own(told: Mapping[str, Any]) -> None:
    """ValueError where a configuration asks for more than a model that transformers has the code of."""
    for name, value in told.items():
        # Attention may be named as code of the hub.
        code = "implementation" in str(name) and isinstance(value, str | Mapping)
        if value and (code or name in ELSEWHERE):
            raise ValueError(f"external_encoder: expected a model of transformers' own, got one with {name} {value!r}")
        if name == "model_type" and str(value).startswith("timm"):
            raise ValueError(f"external_encoder: expected timm:NAME for a model of timm, got transformers' {value}")
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                _check_own(inner)


class ExternalEncoder(nn.Module):
    """A model of timm or transformers with the manners of :class:`EvaEncoder`. Raises ImportError without timm."""

    prepared = None
    """`lavit.tokenizer.inference` knows the own encoder alone."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        super().__init__()
        check_described(described)
        self.library, self.source = described["library"], described["source"]
        self.prefix, self.has_class_token = described["prefix"], described["class_token"]
        self.image_size = described["size"]["image_size"]
        self.num_patches = (self.image_size // described["size"]["patch_size"]) ** 2
        # Built on the CPU even where transformers is about to load weights into empty tensors: buffers that no file
        # holds, tables of positions, keep their values. Its weights draw no numbers of the caller.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            if self.library == "timm":
                self.model = _build_timm(described["model"])
                self.own_size = self.image_size
            else:
                self.model, self.own_size = _build_transformers(described["model"])
        self._tables = {
            name: buffer.clone() for name, buffer in self.model.named_buffers() if name not in self.model.state_dict()
        }

    def restore_tables(self) -> None:
        """Give the buffers that no file holds their values, which loading may have left undefined."""
        for name, buffer in self.model.named_buffers():
            if name in self._tables and buffer.device.type != "meta":
                buffer.copy_(self._tables[name])

    def refuse_preparation(self, *asked: Any) -> None:
        """ValueError where any of what `LaVITTokenizer.for_inference` was asked for is not None."""
        if any(given is not None for given in asked):
            raise ValueError(
                f"for_inference: the encoder is {self.source}, which runs as it is; dtype, merger_dtype, quantization "
                "and compile are for this library's own encoder"
            )

    def forward(self, images: Tensor, class_token: bool = False) -> Tensor:
        """images (B, 3, S, S), normalised pixels -> (B, N, C), or (B, 1 + N, C) with the class token in front.

        Raises ValueError for another shape, and for the class token of a model that has none, and TypeError for integer
        pixels.
        """
        size = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images: expected shape (B, 3, {size}, {size}), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images: expected normalised floating-point pixels, got {images.dtype}")
        if class_token and not self.has_class_token:
            raise ValueError(f"class_token: expected False, since {self.source} has no class token")
        rows = _features(self.model, self.library, images.to(next(self.model.parameters()).dtype), self.own_size)
        if rows.shape[1] != self.prefix + self.num_patches:
            raise ValueError(
                f"{self.source}: gave {rows.shape[1]} rows, expected {self.num_patches} patches behind {self.prefix}"
            )
        patches = rows[:, self.prefix :]
        return torch.cat((rows[:, :1], patches), dim=1) if class_token else patches


def _features(model: nn.Module, library: str, images: Tensor, own_size: int) -> Tensor:
    """All rows of the last features, (B, prefix + N, C)."""
    if library == "timm":
        x = model.forward_features(images)  # type: ignore[operator]
        if x.dim() == 4:  # a grid of a convolutional or windowed model
            last = getattr(model, "output_fmt", "NCHW") == "NHWC"
            x = (x if last else x.permute(0, 2, 3, 1)).flatten(1, 2)
        return x
    told: dict[str, Any] = {"pixel_values": images}
    if images.shape[-1] != own_size and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        told["interpolate_pos_encoding"] = True
    found = model(**told).last_hidden_state
    if found.dim() == 4:
        found = found.flatten(2).transpose(1, 2)
    return found


def _from_timm(rest: str, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    timm = _timm()
    name, _, place = rest.partition("@")
    arguments: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    options: dict[str, Any] = {"num_classes": 0, "pretrained": not place}
    try:
        try:
            model = timm.create_model(name, **options, **arguments)
        except TypeError as error:
            # Convolutional models take any size and know no such argument.
            if "img_size" not in str(error):
                raise
            arguments = {}
            model = timm.create_model(name, **options)
    except (OSError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"encoder: the weights of timm:{name} cannot be had ({told}); a file of them: timm:{name}@FILE"
        ) from error
    if place:
        _load_timm(model, _weights_file(Path(place)))
    data = model.pretrained_cfg
    size = image_size or data["input_size"][-1]
    prefix = getattr(model, "num_prefix_tokens", 0)
    described = {
        "model": {"name": name, "arguments": arguments},
        "mean": [float(m) for m in data["mean"]],
        "std": [float(s) for s in data["std"]],
        "prefix": prefix,
        "class_token": prefix > getattr(model, "num_reg_tokens", 0),
        "size": {"image_size": size},
        "own_size": size,
    }
    return model, described


def _load_timm(model: nn.Module, file: Path) -> None:
    """Weights of a file, whose classifier is left out, in the form that timm publishes them or saves them itself."""
    state = _read_weights(file)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # older names, other sizes
    if adapt is not None:
        state = adapt(state, model)
    account = compare(model, state)
    extra = set(account["unexpected_keys"])
    check_fit(f"encoder: {file} does not fit the model", account | {"unexpected_keys": []})
    model.load_state_dict({name: value for name, value in state.items() if name not in extra})


def _build_timm(told: Mapping[str, Any]) -> nn.Module:
    return _timm().create_model(told["name"], pretrained=False, num_classes=0, **told["arguments"])


def _from_transformers(place: str, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        # A folder may have code of its own beside a model that transformers knows; that is not run.
        _check_own({name: value for name, value in config.to_dict().items() if name != "auto_map"})
        # It is there for its weights.
        unasked: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager"}
        whole = AutoModel.from_pretrained(place, config=config, dtype=torch.float32, **unasked)
    except OSError as error:
        raise FileNotFoundError(f"encoder: {place}: {' '.join(str(error).split())}") from error
    config = getattr(whole.config, "vision_config", whole.config)
    told = _plain(config)
    model, own_size = _build_transformers(told)
    part = whole if config is whole.config else whole.vision_model
    state = part.state_dict()
    # Some versions of transformers put the part of a model of text and images into a shell of its own.
    target = model if model.state_dict().keys() == state.keys() else getattr(model, "vision_model", model)
    target.load_state_dict(state)
    mean, std = _normalisation(place)
    patch = getattr(config, "patch_size", None)
    described = {
        "model": told,
        "mean": mean,
        "std": std,
        "prefix": None,
        "class_token": None,
        "size": {"image_size": image_size or own_size} | ({"patch_size": _side(patch)} if patch else {}),
        "own_size": own_size,
    }
    return model, described


def _build_transformers(told: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The model of a configuration, and the side of the images that it is made for."""
    from transformers import AutoConfig, AutoModel

    kind = str(told.get("model_type"))
    known = AutoConfig.for_model(kind).to_dict()
    # Beside what the configuration has, switches and numbers alone, which can name nothing.
    rest = {
        name: value
        for name, value in told.items()
        if name in known or (isinstance(value, int | float) and not name.startswith("_"))
    }
    rest.pop("model_type")
    config = AutoConfig.for_model(kind, **rest)
    if getattr(config, "image_size", None) is None:
        raise ValueError(f"encoder: transformers' {kind} does not say for what image_size it is made")
    return AutoModel.from_config(config, trust_remote_code=False), _side(config.image_size)


def _plain(config: Any) -> dict[str, Any]:
    """A configuration of transformers as JSON can hold it, without what is of the file alone."""
    left_out = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "auto_map")
    return {name: value for name, value in config.to_dict().items() if name not in left_out}


def _normalisation(place: str) -> tuple[list[float] | None, list[float] | None]:
    """Mean and deviation of a folder's own image processor, None where there is none."""
    from transformers import AutoImageProcessor

    if Path(place).is_dir() and not (Path(place) / "preprocessor_config.json").is_file():
        return None, None
    found = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    return [float(m) for m in found.image_mean], [float(s) for s in found.image_std]


def _side(size: Any) -> int:
    """One number, of a number or two equal ones."""
    sides = {int(side) for side in size} if isinstance(size, (list, tuple)) else {int(size)}
    if len(sides) != 1:
        raise ValueError(f"encoder: expected square images and patches, got {size}")
    return sides.pop()


def _weights_file(place: Path) -> Path:
    """The file itself, or the only one of weights in a folder."""
    if place.is_file():
        return place
    found = [path for path in sorted(place.iterdir()) if path.suffix in WEIGHTS] if place.is_dir() else []
    if len(found) != 1:
        told = f"{len(found)} in the folder" if place.is_dir() else "nothing of that name"
        raise FileNotFoundError(f"encoder: expected a file of weights ({', '.join(WEIGHTS)}) at {place}, got {told}")
    return found[0]


def _read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; of one that wraps them, those under "state_dict" or "model". Nothing in it is run."""
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"encoder: {file} is no file of weights ({' '.join(str(error).split())[:200]})") from error
    for name in ("state_dict", "model"):
        state = state[name] if isinstance(state.get(name), dict) else state
    return state


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"an encoder of timm needs timm ({error}): pip install 'lavit[timm]'") from error
    return timm
