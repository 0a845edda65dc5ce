"""A small text tokenizer of one's own, trained on given sentences: for models that start without a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, PAD = SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
"""Ids 0 to 3. The first three are where LLaMA has them."""

SMALLEST = len(SPECIAL) + 256
"""Ids of a tokenizer that knows the special tokens and the single bytes alone."""


def train_text_tokenizer(sentences: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in the form of transformers: ``save_pretrained``, ``AutoTokenizer.from_pretrained``.

    Every text is encoded without <unk> and decoded to exactly what it was, whatever its bytes; special tokens typed
    into a text are plain letters. Nothing is added to a text: the caller places <s> and </s>. Pads on the left, as
    generation wants it.

    sentences: what to learn frequent pieces from; at least one that is not empty. Their order does not matter, and
    the same sentences give the same tokenizer.
    vocab_size: at most so many ids, at least ``SMALLEST``. ``len(tokenizer)`` is the number of ids in use, which is
    lower where the sentences hold no more pieces.
    Raises ValueError for a smaller size, no text, or text that UTF-8 cannot hold (half of a surrogate pair).
    """
    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size: expected at least {SMALLEST} ({len(SPECIAL)} special tokens and 256 bytes), got {vocab_size}"
        )
    if isinstance(sentences, str):
        raise ValueError("sentences: expected a list of texts, got one text")
    texts = sorted(sentences)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"sentences: {text!r} is not text that UTF-8 can hold ({error.reason})") from None
    if not any(texts):
        raise ValueError("sentences: expected at least one that is not empty, got none")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
