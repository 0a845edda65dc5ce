"""Configuration of the tokenizer and its presets."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from transformers import PretrainedConfig

# Models that learn on a CPU in minutes. A patch of 4 x 4 pixels is 48 numbers, one of 8 x 8 is 192: a width of 128
# holds nearly all that those of pictures have to tell, and their codes are told apart in more dimensions.
SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 96,
    "encoder_depth": 3,
    "encoder_heads": 4,
    "encoder_mlp_ratio": 4.0,
    "encoder_head_dim": None,
    "merger_depth": 2,
    "decoder_depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "code_dim": 16,
    "num_codes": 256,
    "projection_dim": 128,
    "merge": "packed",
    "min_keep": 1,
    "feature_position": True,
    "standardize_features": True,
    "initializer_range": None,
}
OF_PICTURES: dict[str, Any] = SMALL | {"patch_size": 8, "hidden_size": 128, "code_dim": 32, "num_codes": 1024}

# The paper's sizes are the defaults of the configuration.
PRESETS: dict[str, dict[str, Any]] = {
    "lavit-g": {},
    "small": SMALL,
    "small-64": OF_PICTURES | {"image_size": 64},
    "small-96": OF_PICTURES | {"image_size": 96},
    "small-128": OF_PICTURES | {"image_size": 128},
}

# Names that transformers gives to a configuration and that are in no dictionary of one.
OF_TRANSFORMERS = ("torch_dtype", "name_or_path", "num_labels", "attn_implementation", "experts_implementation")


class LaVITTokenizerConfig(PretrainedConfig):
    """Sizes and training settings of a :class:`LaVITTokenizer`; the defaults are the paper's model ("lavit-g").

    Image and encoder (EVA-CLIP ViT-g/14 in the release)
        image_size, patch_size: pixels; N = (image_size / patch_size)^2 patches.
        hidden_size: width C of encoder, merger and decoder.
        encoder_depth, encoder_heads, encoder_mlp_ratio, encoder_layer_norm_eps: the encoder's blocks.
        encoder_head_dim: width of the encoder's CLIP head, which the release's files hold and tokenization does not
            use; None leaves the head and the final norm out.
        external_encoder: a frozen encoder of timm or transformers instead, and all that is needed to build it again
            (`lavit.tokenizer.external_encoder`); its sizes are those above. None: this library's own.
        feature_position: add a learned (1, N, C) embedding to the features before selector and merger.
        standardize_features: subtract a mean and divide by a deviation per position and channel (buffers).
    Selector
        length: "dynamic", every image keeps the patches that it needs; "fixed" (the paper's ablation), the same number
            for every image: the fixed_length = keep_rate * N most probable ones; all N with a keep_rate of 1.
        tau: Gumbel-softmax temperature. min_keep: an image never keeps fewer patches.
        keep_rate: aimed share of kept patches, ratio_weight: weight of its squared error (the paper's rho, lambda).
        ratio_scope: "batch" or "image", over what the keep rate is averaged before it is compared (derived).
        ratio_low, ratio_high: with scope "batch", an image's own rate costs only outside
            [ratio_low * keep_rate, ratio_high * keep_rate] (derived); 0 or None turns a bound off.
        selector_gradient: what of the straight-through gradient of the mask reaches the selector in training:
            "packed" credits kept patches as keys and codes and dropped ones as cross-attention keys; "exact" also
            what the other choice would have changed, and computes all N rows for it.
    Merger and decoder
        merger_depth, decoder_depth, num_heads, mlp_ratio, layer_norm_eps: their blocks.
        merge: "packed" computes kept patches only (the paper's formula), "dense" the release's, all rows and epsilon.
        attention_eps: the release's epsilon in the dense form.
        decoder_out_dim: width of reconstructed features, None for hidden_size.
        decoder_condition: None, "lowres" or "highres": the release's heads that condition a U-Net.
        condition_dim, condition_dim_2: their widths.
    Quantizer
        code_dim, num_codes: the codebook. unit_codes: keep learned codes at unit norm.
        distances: "exact", or "bfloat16": products of vectors and codes rounded to it, as in the release where it runs
            under autocast. A few of 100 vectors have another code then; it is for comparisons.
        commitment_weight, ema_decay, dead_code_fraction: its training (derived from BEiT v2, apart from the last);
            a code used less than dead_code_fraction times the mean use is replaced by a vector of the batch.
    projection_dim: width of the language model that `vit_proj` maps to; None leaves the projection out.
    initializer_range: standard deviation of new weights and embeddings. None, for small models that learn from nothing:
        Glorot's, from each layer's own sizes, and positions of patches start as the same waves over the plane in
        encoder, features and decoder's queries, so that the codes can tell places from the start.

    Raises ValueError for an unknown name (with the nearest known ones) and for sizes that do not fit together.
    """

    model_type = "lavit_tokenizer"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 14,
        hidden_size: int = 1408,
        encoder_depth: int = 40,
        encoder_heads: int = 16,
        encoder_mlp_ratio: float = 4.3637,
        encoder_layer_norm_eps: float = 1e-6,
        encoder_head_dim: int | None = 1024,
        merger_depth: int = 12,
        decoder_depth: int = 12,
        num_heads: int = 16,
        mlp_ratio: float = 4.3637,
        layer_norm_eps: float = 1e-5,
        code_dim: int = 32,
        num_codes: int = 16384,
        distances: str = "exact",
        projection_dim: int | None = 4096,
        decoder_out_dim: int | None = None,
        decoder_condition: str | None = None,
        condition_dim: int = 768,
        condition_dim_2: int = 1280,
        merge: str = "packed",
        selector_gradient: str = "packed",
        attention_eps: float = 1e-6,
        length: str = "dynamic",
        tau: float = 1.0,
        min_keep: int = 0,
        keep_rate: float = 1 / 3,
        ratio_weight: float = 2.0,
        ratio_scope: str = "batch",
        ratio_low: float | None = None,
        ratio_high: float | None = None,
        commitment_weight: float = 1.0,
        ema_decay: float = 0.99,
        dead_code_fraction: float = 0.1,
        unit_codes: bool = True,
        feature_position: bool = False,
        standardize_features: bool = False,
        initializer_range: float | None = 0.02,
        external_encoder: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = locals()  # every argument becomes the attribute of its name
        refuse_unknown(kwargs, LaVITTokenizerConfig)
        for name in own_names(LaVITTokenizerConfig):
            setattr(self, name, given[name])
        super().__init__(**kwargs)
        self._check()

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def fixed_length(self) -> int:
        """Tokens of every image where ``length`` is "fixed"; at least one."""
        return max(1, self.min_keep, round(self.keep_rate * self.num_patches))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> LaVITTokenizerConfig:
        """A named configuration of `PRESETS` ("small-64", say) with some of its values replaced."""
        if name not in PRESETS:
            raise ValueError(f"name: expected one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **overrides})

    def _check(self) -> None:
        for name, allowed in (
            ("length", ("dynamic", "fixed")),
            ("merge", ("packed", "dense")),
            ("selector_gradient", ("packed", "exact")),
            ("distances", ("exact", "bfloat16")),
            ("ratio_scope", ("batch", "image")),
            ("decoder_condition", (None, "lowres", "highres")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        for name in (
            "image_size patch_size hidden_size encoder_depth encoder_heads merger_depth decoder_depth num_heads"
            " code_dim num_codes condition_dim condition_dim_2"
        ).split():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {getattr(self, name)!r}")
        width, patches, std = self.hidden_size, self.num_patches, self.initializer_range
        for name, holds, wanted in (
            ("image_size", self.image_size % self.patch_size == 0, f"a multiple of patch_size {self.patch_size}"),
            ("encoder_heads", width % self.encoder_heads == 0, f"a divisor of hidden_size {width}"),
            ("num_heads", width % self.num_heads == 0, f"a divisor of hidden_size {width}"),
            ("hidden_size", width % 4 == 0, "a multiple of 4 (the selector's layers)"),
            ("min_keep", 0 <= self.min_keep <= patches, f"0 to {patches} (the patches)"),
            ("keep_rate", 0 < self.keep_rate <= 1, "a number in (0, 1]"),
            ("initializer_range", std is None or std > 0, "a positive number or None"),
            ("tau", self.tau > 0, "a positive number"),
            ("ema_decay", 0 <= self.ema_decay < 1, "a number in [0, 1)"),
        ):
            if not holds:
                raise ValueError(f"{name}: expected {wanted}, got {getattr(self, name)}")
        if self.external_encoder is not None:
            if missing := {"library", "model", "source", "size"} - self.external_encoder.keys():
                raise ValueError(f"external_encoder: expected {', '.join(sorted(missing))} in it (open_external)")
            source = self.external_encoder["source"]
            for name, size in self.external_encoder["size"].items():
                if (got := getattr(self, name)) != size:
                    raise ValueError(f"{name}: expected {size}, that of the encoder {source}, got {got}")


def own_names(config_class: type[PretrainedConfig]) -> list[str]:
    """Those that a configuration has beside transformers' own."""
    return [name for name in inspect.signature(config_class.__init__).parameters if name not in ("self", "kwargs")]


def refuse_unknown(kwargs: dict[str, Any], config_class: type[PretrainedConfig]) -> None:
    """Refuse names that neither the class nor transformers knows, and suggest the nearest known ones."""
    common = set(PretrainedConfig().to_dict()) | set(OF_TRANSFORMERS)
    hints = []
    for name in sorted(k for k in kwargs if k not in common and not k.startswith("_")):
        near = difflib.get_close_matches(name, sorted(own_names(config_class)), n=3, cutoff=0.5)
        hints.append(f"{name!r}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    if hints:
        raise ValueError(f"{config_class.__name__}: unknown name {', '.join(hints)}")
