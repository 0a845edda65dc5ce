"""LaVIT: one language model that reads and writes text and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, GenerationConfig, LlamaForCausalLM
from transformers.utils import ModelOutput

from lavit.kernels import Ragged
from lavit.kernels.types import compute_dtype
from lavit.language import attention, inference, packed_layers
from lavit.language.assembly import PackedBatch, SegmentLoss, assemble
from lavit.language.configuration import LaVITConfig, check_rotation
from lavit.language.continuous_features import Understanding
from lavit.language.loss import linear_cross_entropy
from lavit.language.text_settings import load_settings, save_settings
from lavit.language.vocabulary import Vocabulary, grow_vocabulary
from lavit.tokenizer import LaVITTokenizer, VisualTokens
from lavit.tokenizer.pretrained import StrictModel

IGNORED = -100

HUB = frozenset(("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"))
"""Arguments of ``from_pretrained`` that say where a file is looked for."""

# What `visual_dtype` of the configuration is about; the rest of the tokenizer is in float32 in any case.
VISUAL_PARTS = [f"visual_tokenizer.{part}" for part in ("encoder", "causal_encoder", "vit_proj", "decoder")]
VISUAL_PARTS += ["visual_tokenizer.feature_mean", "visual_tokenizer.feature_std", "visual_tokenizer.feature_position"]
VISUAL_PARTS += ["understanding"]


@dataclass
class LaVITOutput(ModelOutput):
    """What one training step computes; losses are scalars.

    loss: mean over the num_labels labels that count (with "regress", plus regression_weight * image_loss).
    text_loss, image_loss: of the text_labels and image_labels apart, without gradient; [IMG] and [/IMG] count as image.
        With "regress" image_loss is that of the embeddings, and the markers count as text.
    hidden_states: (T, H) of the last layer, if asked for. batch: the packed rows.
    """

    loss: Tensor | None = None
    num_labels: Tensor | None = None
    text_loss: Tensor | None = None
    image_loss: Tensor | None = None
    text_labels: Tensor | None = None
    image_labels: Tensor | None = None
    hidden_states: Tensor | None = None
    batch: PackedBatch | None = None


class LaVIT(StrictModel):
    """LaVIT (arXiv 2309.04669, section 3.2): a LLaMA whose vocabulary holds the codes of a visual tokenizer.

    language_model: a LlamaForCausalLM; one softmax over text ids, [IMG], [/IMG] and codes. visual_tokenizer: frozen
    here, and always in evaluation mode. understanding: a second merger and the projector: images are read as
    continuous features by these, and written as codes of the tokenizer's own merger.
    generation_config, answer_generation_config: how captions and answers are written where a caller does not say, each
    a file of the folder; None: as in the release. See `lavit.language.text_settings`.
    """

    config_class = LaVITConfig
    base_model_prefix = ""
    main_input_name = "text"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["LlamaDecoderLayer", *LaVITTokenizer._no_split_modules]
    _keep_in_fp32_modules_strict = LaVITTokenizer._keep_in_fp32_modules_strict

    config: LaVITConfig

    def __init__(
        self,
        config: LaVITConfig,
        language_model: LlamaForCausalLM | None = None,
        visual_tokenizer: LaVITTokenizer | None = None,
    ) -> None:
        """New parts by the configuration where they are not given; see :meth:`from_parts`."""
        check_rotation(config.text_config if language_model is None else language_model.config)
        if config.visual_dtype == "float32":
            self._keep_in_fp32_modules_strict = [*self._keep_in_fp32_modules_strict, *VISUAL_PARTS]
        super().__init__(config)
        for part in filter(None, (language_model, visual_tokenizer)):
            for module in part.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # what transformers must not draw again
        if config.text_config._attn_implementation is None:
            config.text_config._attn_implementation = attention.NAME
        self.language_model = language_model or LlamaForCausalLM(config.text_config)
        self.visual_tokenizer = visual_tokenizer or LaVITTokenizer(config.tokenizer_config)
        width = config.text_config.hidden_size
        self.understanding = Understanding(config.tokenizer_config, width)
        if config.image_objective == "regress":
            self.regressor = nn.Linear(width, config.tokenizer_config.hidden_size)
        self.generation_config: GenerationConfig | None = None  # type: ignore[assignment]  # there is always one there
        self.answer_generation_config: GenerationConfig | None = None
        self.post_init()
        self.freeze()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[Any] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """As of any `StrictModel`, with the settings of captions and answers that the folder has."""
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if pretrained_model_name_or_path is not None:
            hub = {name: value for name, value in kwargs.items() if name in HUB and value is not None}
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            load_settings(model, pretrained_model_name_or_path, **hub)
        return loaded

    def save_pretrained(self, save_directory: str | PathLike[Any], **kwargs: Any) -> None:  # type: ignore[override]
        """As of any `StrictModel`, with the settings of captions and answers, if there are any. ``push_to_hub=True``
        leaves these out; the method ``push_to_hub`` does not."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            save_settings(self, save_directory)

    @classmethod
    def from_parts(
        cls,
        language_model: LlamaForCausalLM,
        tokenizer: LaVITTokenizer,
        *,
        text_size: int | None = None,
        **settings: Any,
    ) -> LaVIT:
        """A model from a LLaMA and a trained tokenizer, which become parts of it (they are changed, not copied).

        text_size: number of text ids; None: all of the language model's. A vocabulary that lacks [IMG], [/IMG] and the
            codes grows by them, its new rows drawn as more of the old ones; one that has them already stays.
        settings: others of LaVITConfig. The understanding merger starts as the tokenizer's, in its dtype; the projector
            as the tokenizer's `vit_proj` where that has the right width, else new.
        Raises ValueError for a language model of fewer than ``text_size`` rows, or whose ``rope_type`` makes a sample
        depend on its neighbours ("dynamic", "longrope").
        """
        check_rotation(language_model.config)
        rows = language_model.config.vocab_size
        text_size = rows if text_size is None else text_size
        if rows < text_size:
            raise ValueError(f"language_model: expected at least {text_size} rows of text ids, got {rows}")
        size = Vocabulary(text_size, tokenizer.config.num_codes).size
        if rows < size:
            grow_vocabulary(language_model, text_size, size)
        if language_model.config._attn_implementation in ("sdpa", "eager"):
            language_model.set_attn_implementation(attention.NAME)
        config = LaVITConfig(language_model.config, tokenizer.config, text_size, **settings)  # type: ignore[arg-type]
        model = cls(config, language_model, tokenizer)
        example = tokenizer.causal_encoder.norm.weight
        model.understanding.to(example.device, example.dtype)
        model.understanding.start_from(tokenizer)
        if config.image_objective == "regress":
            model.regressor.to(example.device, example.dtype)
        return model.train(language_model.training)

    @property
    def vocabulary(self) -> Vocabulary:
        """Which ids are text, markers and codes."""
        return self.config.vocabulary

    def freeze(self) -> None:
        """Keep the visual tokenizer from the optimizer. Loading a model does it."""
        self.visual_tokenizer.requires_grad_(False)

    def train(self, mode: bool = True) -> LaVIT:
        """As in any module, but for the visual tokenizer, whose codebook would move in training mode."""
        super().train(mode)
        self.visual_tokenizer.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """transformers' method, of the language model: another number of rows beyond those of the vocabulary.

        The ids stay: text, [IMG], [/IMG], codes. Rows beyond stand for no id, are never predicted and take no part in
        the softmax: losses and what is generated are the same for any number. ``config.text_config`` follows.
        Raises ValueError for fewer rows than ``vocabulary.size``.
        """
        rows = self.config.text_config.vocab_size if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows < self.vocabulary.size:
            raise ValueError(
                f"new_num_tokens: expected at least {self.vocabulary.size} rows, the vocabulary's with its codes, got "
                f"{rows}; text ids cannot be added or taken away after the model is made"
            )
        embeddings = self.language_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.config.text_config.vocab_size = embeddings.weight.shape[0]
        return embeddings

    # From samples to hidden states.

    def assemble(
        self,
        text: Ragged,
        segments: Ragged,
        *,
        images: Tensor | None = None,
        features: Tensor | None = None,
        tokens: VisualTokens | None = None,
        loss: SegmentLoss = None,
        seeds: Tensor | Sequence[int] | None = None,
        deterministic: bool = False,
        noise: Tensor | None = None,
        total: int | None = None,
    ) -> PackedBatch:
        """Samples of text and images, in any order and number, as one packed row.

        text: ids (Tt,), one sequence for each TEXT segment of the batch. segments: ``Segment`` (S,), one sequence for
            each sample. Both best on the CPU: elsewhere the host waits for them.
        images, features, tokens, seeds, deterministic, noise: the images of the other segments, in the order of these,
            and how they are tokenized; see ``image_rows``. An image that is CODES is its codes; one that is FEATURES is
            continuous, and its codes are predicted if its loss says so.
        loss: what is predicted, by kind or for each segment (S,), as in ``assemble_sequences``. Default: texts and
            CODES. With "regress", CODES are continuous as well, and what is predicted of them is embeddings.
        total: rows of the result, those beyond the samples being padding; None: no padding.

        Raises ValueError for pieces or images that are missing or too many, ids outside the vocabulary, a sample longer
        than the model's context, naming it, and more rows than ``total``.
        """
        return assemble(
            self,
            text,
            segments,
            loss=loss,
            total=total,
            images=images,
            features=features,
            tokens=tokens,
            seeds=seeds,
            deterministic=deterministic,
            noise=noise,
        )

    def embed(self, batch: PackedBatch) -> Tensor:
        """(T, H): what the language model reads, features in the place of ids where there are features."""
        rows = self.language_model.get_input_embeddings()(batch.sequences.input_ids)
        if batch.features is None or batch.feature_rows is None:
            return rows
        return rows.index_copy(0, batch.feature_rows, batch.features.to(rows.dtype))

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """(T, H): the last layer's output, after its norm. No token sees another sample."""
        sequences = batch.sequences
        if sequences.input_ids.shape[0] == 0:
            return self.embed(batch)
        rows, layers = self.embed(batch), self.language_model.model
        implementation = self.language_model.config._attn_implementation
        if implementation == attention.NAME and packed_layers.can_take(layers, rows):
            ends = sequences.cu_seqlens, batch.max_seqlen
            return packed_layers.hidden_states(layers, rows, sequences.position_ids, *ends)
        arguments = attention.packed_arguments(sequences.cu_seqlens, batch.max_seqlen, implementation)
        out = layers(inputs_embeds=rows[None], position_ids=sequences.position_ids[None], **arguments)
        return out.last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., H) -> (..., vocabulary.size): rows of the head that stand for no id are left out."""
        return F.linear(hidden, self._head())

    def _head(self) -> Tensor:
        weight = self.language_model.get_output_embeddings().weight
        return weight[: self.vocabulary.size] if weight.shape[0] > self.vocabulary.size else weight

    # Training.

    def forward(
        self,
        text: Ragged,
        segments: Ragged,
        *,
        output_hidden_states: bool = False,
        impl: str = "auto",
        shares: Mapping[str, Tensor] | None = None,
        **samples: Any,
    ) -> LaVITOutput:
        """The loss of a batch: cross-entropy at every position that is predicted, text and codes in one softmax.

        text, segments and samples: as in :meth:`assemble`. impl: of ``linear_cross_entropy``, which never holds the
        logits of all positions. A batch without any label has loss 0. shares: for a batch that is a part of a larger
        one, factors of the two means that make up ``loss``: "labels", and with "regress" "image_labels". A part with n
        of the N labels of k batches has the factor k n / N: then the mean over the batches is the mean over all labels.
        """
        batch = self.assemble(text, segments, **samples)
        hidden = self.hidden_states(batch)
        # Row t predicts label t + 1; the first label of a sample never counts, so none is predicted from another one.
        labels = F.pad(batch.sequences.labels[1:], (0, min(1, hidden.shape[0])), value=IGNORED)
        regression = None
        if batch.targets is not None and batch.target_rows is not None:
            labels = labels.index_fill(0, batch.target_rows - 1, IGNORED)
            regression = self._regression(hidden[batch.target_rows - 1], batch.targets)
        words = linear_cross_entropy(hidden, self._head(), labels, ignore_index=IGNORED, impl=impl)
        is_image = labels >= self.vocabulary.begin_id
        if self.config.image_objective == "regress":
            is_image = torch.zeros_like(is_image)
        is_text = (labels != IGNORED) & ~is_image
        loss = words.mean if shares is None else words.mean * shares["labels"]
        out = LaVITOutput(
            num_labels=words.number,
            text_loss=_mean(words.rows, is_text),
            image_loss=_mean(words.rows, is_image),
            text_labels=is_text.sum(),
            image_labels=is_image.sum(),
            hidden_states=hidden if output_hidden_states else None,
            batch=batch,
        )
        if regression is not None and batch.targets is not None:
            weight = self.config.regression_weight
            loss = loss + weight * (regression if shares is None else regression * shares["image_labels"])
            out.image_loss = regression.detach()
            out.image_labels = torch.full_like(words.number, batch.targets.shape[0])
            out.num_labels = words.number + out.image_labels
        if self.training and dist.is_available() and dist.is_initialized():
            loss = loss + self._untouched(batch)
        out.loss = loss
        return out

    def _regression(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean squared distance of the predicted embeddings from the stage-1 merger's (as Emu's; *derived*)."""
        predicted = self.regressor(hidden.to(self.regressor.weight.dtype))
        distance = (predicted.to(compute_dtype(predicted)) - targets.to(compute_dtype(predicted))).square().mean(dim=1)
        return distance.sum() / max(distance.shape[0], 1)

    def _untouched(self, batch: PackedBatch) -> Tensor:
        """0, with a zero gradient for every part that this batch did not use: DistributedDataParallel waits for all."""
        zero = torch.zeros((), device=batch.sequences.input_ids.device)
        if batch.features is None:
            zero = zero + sum(p.sum() * 0 for p in self.understanding.parameters())
        if batch.targets is None and self.config.image_objective == "regress":
            zero = zero + sum(p.sum() * 0 for p in self.regressor.parameters())
        return zero

    # Inference.

    caption = inference.caption
    answer = inference.answer
    generate_tokens = inference.generate_tokens
    generate_features = inference.generate_features


def _mean(rows: Tensor, wanted: Tensor) -> Tensor:
    return torch.where(wanted, rows, 0).sum() / wanted.sum().clamp(min=1)


AutoConfig.register(LaVITConfig.model_type, LaVITConfig, exist_ok=True)
AutoModel.register(LaVITConfig, LaVIT, exist_ok=True)
