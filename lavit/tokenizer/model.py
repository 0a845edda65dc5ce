"""The tokenizer as a whole: images to a variable number of discrete tokens, and tokens back to features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from lavit.kernels import Ragged, Selection, gumbel_select
from lavit.kernels.checks import as_seeds
from lavit.kernels.dispatch import debugging
from lavit.kernels.types import compute_dtype
from lavit.tokenizer.configuration import LaVITTokenizerConfig
from lavit.tokenizer.decoder import AttentionPool, TokenDecoder
from lavit.tokenizer.encoder import EvaAttention, EvaEncoder
from lavit.tokenizer.external_encoder import ExternalEncoder
from lavit.tokenizer.inference import Mode, prepare
from lavit.tokenizer.losses import BatchShare, ratio_loss
from lavit.tokenizer.merger import Layout, Merger
from lavit.tokenizer.outputs import LaVITTokenizerOutput, VisualTokens
from lavit.tokenizer.position_init import init_positions
from lavit.tokenizer.pretrained import StrictModel
from lavit.tokenizer.quantizer import Quantizer, in_full_precision
from lavit.tokenizer.selector import Selector, in_precision, select_fixed

# Deviation of new embeddings where the configuration leaves it open; that of a standardised feature is 1.
EMBEDDING_STD = 0.1


class LaVITTokenizer(StrictModel):
    """LaVIT's dynamic visual tokenizer (arXiv 2309.04669, section 3.1), with the release's parameter names.

    The encoder is frozen. ``features=`` of every method is what :meth:`encode_features` returns, so that features may
    be computed once and cached.
    """

    config_class = LaVITTokenizerConfig
    base_model_prefix = ""
    main_input_name = "images"
    _no_split_modules = ["EvaBlock", "MergerBlock", "DecoderBlock"]
    # What decides the ids. Not all of the quantizer: its count of updates is an integer.
    _keep_in_fp32_modules_strict = [
        "token_predictor",
        "encode_task_layer",
        "quantize.embedding",
        "quantize.cluster_size",
    ]
    _supports_sdpa = True

    config: LaVITTokenizerConfig
    encoder: Any  # an EvaEncoder, or an ExternalEncoder, which has its manners
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: LaVITTokenizerConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        external = config.external_encoder
        self.encoder = EvaEncoder(config) if external is None else ExternalEncoder(external)
        if config.standardize_features:
            self.register_buffer("feature_mean", torch.zeros(config.num_patches, width))
            self.register_buffer("feature_std", torch.ones(config.num_patches, width))
        if config.feature_position:
            self.feature_position = nn.Parameter(torch.zeros(1, config.num_patches, width))
        self.token_predictor = Selector(config)
        self.causal_encoder = Merger(config)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dim))
        self.quantize = Quantizer(config)
        if config.projection_dim is not None:
            self.vit_proj = nn.Linear(width, config.projection_dim)
        self.decoder = TokenDecoder(config)
        self.post_init()
        self.freeze()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        embedding_std = EMBEDDING_STD if std is None else std
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            glorot = (2 / sum(module.weight.flatten(1).shape)) ** 0.5
            nn.init.trunc_normal_(module.weight, std=glorot if std is None else std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, EvaAttention):
            nn.init.zeros_(module.q_bias)
            nn.init.zeros_(module.v_bias)
        elif isinstance(module, EvaEncoder):
            nn.init.trunc_normal_(module.cls_token, std=embedding_std)
            init_positions(module.pos_embed, self.config)
        elif isinstance(module, TokenDecoder):
            nn.init.trunc_normal_(module.pos_embed, std=embedding_std)
            init_positions(module.query_embed, self.config)
        elif isinstance(module, AttentionPool):
            nn.init.trunc_normal_(module.positional_embedding, std=embedding_std)
        elif isinstance(module, nn.Embedding):
            # Standard deviation of a unit vector's entries; training starts from initialize() anyway.
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        elif module is self and self.config.feature_position:
            init_positions(self.feature_position, self.config)

    @property
    def num_patches(self) -> int:
        return self.config.num_patches

    def freeze(self) -> None:
        """Keep the encoder, and the codebook, which learns by averages, from the optimizer. Loading a model does it."""
        self.encoder.requires_grad_(False)
        self.quantize.requires_grad_(False)
        if isinstance(self.encoder, ExternalEncoder):
            self.encoder.restore_tables()

    @property
    def mode(self) -> Mode | None:
        """How :meth:`for_inference` has prepared it."""
        return getattr(self.encoder.prepared, "mode", None)

    def for_inference(
        self,
        *,
        dtype: torch.dtype | str | None = None,
        compile: bool = False,
        quantization: str | None = None,
        batch_sizes: Sequence[int] = (1, 4, 16),
        merger_dtype: torch.dtype | str | None = None,
    ) -> LaVITTokenizer:
        """Make the frozen encoder fast, in place, on the device where it is; to be called once, last. Returns self.

        dtype: "float32", "bfloat16" or "float16", of the encoder's weights; its features come in float32 then.
        quantization: what `lavit.tokenizer.quantization` offers, of the encoder's linear layers.
        compile: run it by what is fastest here (`lavit.tokenizer.inference`); compiled code and CUDA graphs are made
            for batches of ``batch_sizes``, to which others are split and padded.
        merger_dtype: of the merger's weights. Selector and quantizer, which decide, stay in float32. None: as it is.
        With rounded weights neither the tokenizer nor a model that holds it can be saved, and a prepared one cannot be
        copied. What is not the encoder's may still learn. Without arguments nothing changes in any bit.
        ValueError where anything is asked of an encoder of timm or transformers, which runs as it is.
        """
        encoder = self.eval().encoder
        if isinstance(encoder, ExternalEncoder):
            encoder.refuse_preparation(compile or None, dtype, quantization, merger_dtype)
            return self
        prepare(
            encoder,
            self.causal_encoder,
            dtype=dtype,
            merger_dtype=merger_dtype,
            compile=compile,
            quantization=quantization,
            batch_sizes=batch_sizes,
        )
        return self

    # From images to the merged, continuous tokens.

    @torch.no_grad()
    def encode_features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S), normalised -> (B, N, C) features of the frozen encoder, standardised if configured."""
        features = self.encoder(images)
        if self.config.standardize_features:
            features = (features - self.feature_mean) / self.feature_std
        return features

    @torch.no_grad()
    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Give the (N, C) mean and deviation of the encoder's raw features that :meth:`encode_features` removes."""
        if not self.config.standardize_features:
            raise RuntimeError("set_feature_statistics: the configuration has standardize_features=False")
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.feature_mean.shape:
                raise ValueError(f"{name}: expected shape {tuple(self.feature_mean.shape)}, got {tuple(value.shape)}")
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp(min=1e-6))

    def select(
        self,
        features: Tensor,
        seeds: Tensor | Sequence[int] | None = None,
        deterministic: bool = False,
        noise: Tensor | None = None,
        tau: float | None = None,
        noise_scale: float = 1.0,
    ) -> Selection:
        """Choose the patches to keep. features (B, N, C) -> Selection.

        seeds: (B,) one per image; its tokens then do not depend on the rest of the batch. deterministic: no noise.
        noise: (B, N, 2) Gumbel noise. tau: None for the configuration's. noise_scale: multiplies the noise; 0 decides
        like ``deterministic``.
        """
        return self._select(self._scores(self.positioned(features)), seeds, deterministic, noise, tau, noise_scale)

    def features(
        self,
        images: Tensor | None = None,
        *,
        features: Tensor | None = None,
        seeds: Tensor | Sequence[int] | None = None,
        deterministic: bool = False,
        noise: Tensor | None = None,
    ) -> Ragged:
        """Continuous tokens for a language model: (T, projection_dim), or (T, C) without a projection.

        Differentiable from the selector on. One host synchronisation. Raises ValueError for NaN or Inf pixels.
        """
        merged, _ = self._tokens(images, features, seeds, deterministic, noise)
        if self.config.projection_dim is None:
            return merged
        return merged.with_values(self.vit_proj(merged.values.to(self.vit_proj.weight.dtype)))

    def latents(
        self,
        images: Tensor | None = None,
        *,
        features: Tensor | None = None,
        seeds: Tensor | Sequence[int] | None = None,
        deterministic: bool = False,
        noise: Tensor | None = None,
    ) -> Ragged:
        """What the quantizer sees: (T, code_dim) unit vectors. Feed their values to ``quantize.initialize``."""
        merged, _ = self._tokens(images, features, seeds, deterministic, noise)
        return merged.with_values(self.quantize.normalize(self._encode_task(merged.values)))

    @torch.no_grad()
    def encode(
        self,
        images: Tensor | None = None,
        *,
        features: Tensor | None = None,
        seeds: Tensor | Sequence[int] | None = None,
        deterministic: bool = False,
        noise: Tensor | None = None,
    ) -> VisualTokens:
        """Images (B, 3, S, S), normalised, or their features (B, N, C) -> discrete tokens.

        Without ``seeds`` and ``deterministic`` the selection is random, as in the release; see :meth:`select`.
        One host synchronisation. Raises ValueError for NaN or Inf pixels.
        """
        merged, selection = self._tokens(images, features, seeds, deterministic, noise)
        return VisualTokens(self.ids_of(merged.values), merged.cu_seqlens, selection.keep > 0.5)

    @torch.no_grad()
    def ids_of(self, merged: Tensor) -> Tensor:
        """Merged rows (T, C) -> (T,) int64 codes."""
        return self.quantize.nearest(self._encode_task(merged))

    # From tokens back to features.

    def decode(self, tokens: VisualTokens | Ragged) -> Tensor:
        """Tokens, a ragged batch of ids (T,), or one of code vectors (T, code_dim) -> (B, N, C_out) features.

        Raises ValueError for ids outside the codebook (on a GPU under ``LAVIT_DEBUG=1`` only) and for more codes per
        image than patches.
        """
        ragged = tokens.ragged() if isinstance(tokens, VisualTokens) else tokens
        values = ragged.values
        if not values.is_floating_point():
            self._check_ids(values)
            values = self.quantize.lookup(values)
        return self.decoder(ragged.with_values(values.to(self.decoder.in_proj.weight.dtype)))

    # Training.

    def forward(
        self,
        images: Tensor | None = None,
        *,
        features: Tensor | None = None,
        seeds: Tensor | Sequence[int] | None = None,
        noise: Tensor | None = None,
        tau: float | None = None,
        noise_scale: float = 1.0,
        quantize: bool = True,
        deterministic: bool = False,
        share: BatchShare | None = None,
    ) -> LaVITTokenizerOutput:
        """Tokenize, decode and compare: the losses of stage 1 (the paper's, with a commitment term that is derived).

        In training mode the codebook moves (see Quantizer). ``quantize=False`` decodes the unit vectors themselves.
        share: for a batch that is a part of a step's whole batch: the mean over the parts of every loss is then that
        of the whole. The other arguments are those of :meth:`select`. The target of the reconstruction is the features
        as given.
        NaN or Inf in the input gives a NaN loss, no error, and leaves the codebook sane. One host synchronisation.
        """
        width, out_dim = self.config.hidden_size, self.config.decoder_out_dim
        if out_dim not in (None, width):
            raise ValueError(f"decoder_out_dim: expected hidden_size {width} to compare with features, got {out_dim}")
        target = self._features_of(images, features)
        x = self.positioned(target)
        scores = self._scores(x)
        selection = self._select(scores, seeds, deterministic, noise, tau, noise_scale)
        layout = Layout.measure(selection)
        exact = self.training and self.config.selector_gradient == "exact" and selection.keep.requires_grad
        reconstruct = self._reconstruct_all_rows if exact else self._reconstruct_kept_rows
        reconstruction, ids, commitment = reconstruct(x, layout, quantize)
        cosine = F.cosine_similarity(in_full_precision(reconstruction), in_full_precision(target.detach()), dim=-1)
        reconstruction_loss = (1 - cosine).sum() / max(cosine.numel(), 1)
        keep_rate = selection.keep.detach().sum() / max(selection.keep.numel(), 1)
        if share is not None:
            reconstruction_loss, commitment = reconstruction_loss * share.images, commitment * share.tokens
            keep_rate = share.keep_rate
        ratio = ratio_loss(selection.keep, self.config, share)
        loss = reconstruction_loss + self.config.ratio_weight * ratio + self.config.commitment_weight * commitment
        return LaVITTokenizerOutput(
            loss=loss,
            reconstruction_loss=reconstruction_loss,
            ratio_loss=ratio,
            commitment_loss=commitment,
            keep_rate=keep_rate,
            reconstruction=reconstruction,
            scores=scores,
            selection=selection,
            ids=ids,
            cu_seqlens=selection.cu_kept,
        )

    def _reconstruct_kept_rows(self, x: Tensor, layout: Layout, quantize: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        merged = self._merge(x, layout)
        codes, ids, commitment = self._quantize(self._encode_task(merged.values), quantize, None)
        keep = layout.selection.keep
        weight = layout.kept(keep).values if torch.is_grad_enabled() and keep.requires_grad else None
        codes = codes.to(self.decoder.in_proj.weight.dtype)
        return self.decoder(merged.with_values(codes), key_weight=weight), ids, commitment

    def _reconstruct_all_rows(self, x: Tensor, layout: Layout, quantize: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same function by way of all N rows, so that the mask's gradient also knows what a dropped patch's token
        would have changed: it would have had the rank that follows from the kept patches before it."""
        keep = layout.selection.keep
        batch, patches = keep.shape
        latents = self._encode_task(self.causal_encoder.dense(self._for_merger(x), keep)).flatten(0, 1)
        kept = keep.detach() > 0.5
        codes, ids, commitment = self._quantize(latents, quantize, kept.flatten())
        ends = torch.arange(batch + 1, device=keep.device, dtype=torch.int32) * patches
        rank = (kept.cumsum(dim=1) - kept.long()).flatten()
        ragged = Ragged(codes.to(self.decoder.in_proj.weight.dtype), ends, patches)
        reconstruction = self.decoder(ragged, rank=rank, key_weight=keep.flatten())
        ids = None if ids is None else layout.kept(ids.view(batch, patches)).values
        return reconstruction, ids, commitment

    def _quantize(
        self, latents: Tensor, quantize: bool, counted: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if quantize:
            return self.quantize(latents, counted)
        return self.quantize.normalize(latents), None, torch.zeros((), device=latents.device)

    # Parts.

    def _features_of(self, images: Tensor | None, features: Tensor | None) -> Tensor:
        if (images is None) == (features is None):
            given = "none" if images is None else "both"
            raise ValueError(f"images, features: expected exactly one of them, got {given}")
        if images is not None:
            return self.encode_features(images)
        assert features is not None
        expected = (self.num_patches, self.config.hidden_size)
        if features.dim() != 3 or features.shape[1:] != expected:
            raise ValueError(f"features: expected shape (B, {expected[0]}, {expected[1]}), got {tuple(features.shape)}")
        return features

    def positioned(self, features: Tensor) -> Tensor:
        """What selector and merger see: the features (B, N, C), with the position embedding if there is one."""
        return features + self.feature_position if self.config.feature_position else features

    def _scores(self, x: Tensor) -> Tensor:
        # A frozen selector's choice is a constant: without this, a learned feature_position would still ask for the
        # mask's gradient.
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.token_predictor.parameters())
        with torch.set_grad_enabled(learning):
            return self.token_predictor(x)

    def _select(
        self,
        scores: Tensor,
        seeds: Tensor | Sequence[int] | None,
        deterministic: bool,
        noise: Tensor | None,
        tau: float | None = None,
        noise_scale: float = 1.0,
    ) -> Selection:
        tau = self.config.tau if tau is None else tau
        if noise_scale < 0:
            raise ValueError(f"noise_scale: expected a number of at least 0, got {noise_scale}")
        if noise_scale == 0:
            deterministic, seeds, noise = True, None, None
        elif noise_scale != 1 and not deterministic:
            # keep iff (s0 - s1)/c + logistic noise > 0 is the choice with the noise scaled by c; tau/c undoes the
            # division for the relaxed probability.
            scores, tau = scores / noise_scale, tau / noise_scale
        if seeds is not None:
            seeds = as_seeds("seeds", seeds, scores.device)
        if self.config.length == "fixed":
            count = self.config.fixed_length
            return select_fixed(scores, count, tau=tau, noise=noise, seeds=seeds, deterministic=deterministic)
        return gumbel_select(
            scores, tau=tau, noise=noise, seeds=seeds, deterministic=deterministic, min_keep=self.config.min_keep
        )

    def _tokens(
        self,
        images: Tensor | None,
        features: Tensor | None,
        seeds: Tensor | Sequence[int] | None,
        deterministic: bool,
        noise: Tensor | None,
    ) -> tuple[Ragged, Selection]:
        """Merged kept rows (T, C) of finite input. The test of it shares the one host synchronisation."""
        source = self._features_of(images, features)
        x = self.positioned(source)
        selection = self._select(self._scores(x), seeds, deterministic, noise)
        *sizes, finite = torch.cat((Layout.sizes(selection), x.isfinite().all().long().view(1))).tolist()
        if not finite:
            raise ValueError(describe_non_finite(images, source))
        return self._merge(x, Layout.from_sizes(selection, sizes)), selection

    def _merge(self, x: Tensor, layout: Layout) -> Ragged:
        merged = self.causal_encoder(self._for_merger(x), layout, self.config.merge)
        return merged if self.mode is None else merged.to(x.dtype)

    def _for_merger(self, x: Tensor) -> Tensor:
        """x in the dtype of a merger that was cast by :meth:`for_inference`."""
        return x if self.mode is None else x.to(self.causal_encoder.norm.weight.dtype)

    def _encode_task(self, rows: Tensor) -> Tensor:
        """(..., C) -> (..., code_dim) in float32 (float64 stays): what decides the ids is not left to autocast."""
        with torch.autocast(rows.device.type, enabled=False):
            return in_precision(self.encode_task_layer, rows.to(compute_dtype(rows)))

    def _check_ids(self, ids: Tensor) -> None:
        if ids.numel() and (ids.device.type == "cpu" or debugging()):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.config.num_codes:
                raise ValueError(f"tokens: expected ids in [0, {self.config.num_codes}), got {low} to {high}")


def describe_non_finite(images: Tensor | None, features: Tensor) -> str:
    """Which images of a batch hold NaN or Inf. For the error's text only: reads the device."""
    name, x = ("features", features) if images is None or bool(images.isfinite().all()) else ("images", images)
    which = (~x.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if name == "images" or images is None:
        return f"{name}: expected finite values, got NaN or Inf in batch entries {which}"
    return f"images: the encoder's features of batch entries {which} are NaN or Inf (overflow in {x.dtype}?)"


AutoConfig.register(LaVITTokenizerConfig.model_type, LaVITTokenizerConfig, exist_ok=True)
AutoModel.register(LaVITTokenizerConfig, LaVITTokenizer, exist_ok=True)
