"""Text tokenizers: a small one of one's own, trained on given sentences, and LLaMA's, of a file of sentencepiece."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, PAD = SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
"""Ids 0 to 3. The first three are where LLaMA has them."""

SPACE = "\u2581"
"""How sentencepiece writes a space."""

READERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages that a file of sentencepiece is read with, and their modules."""

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


def sentencepiece_tokenizer(path: str | PathLike[str]) -> PreTrainedTokenizerFast:
    """LLaMA's text tokenizer from its `tokenizer.model` alone, as the released LaVIT uses it.

    A text's ids are those of the slow LlamaTokenizer of transformers 4: every piece of text gets a space before it,
    even where it has one, and a special token typed into a text is that token. So are decoded texts, but where bytes
    are no UTF-8: all of such a run become U+FFFD here. <s> is put before a text unless ``add_special_tokens=False``.
    Pads on the left with </s>.

    Raises ImportError where sentencepiece or protobuf is missing, FileNotFoundError for no such file and ValueError for
    a damaged one, and for one whose <unk>, <s> and </s> are not ids 0 to 2.
    """
    lacking = [name for name, module in READERS.items() if not _is_there(module)]
    if lacking:
        raise ImportError(f"{path}: reading it needs {' and '.join(lacking)}; pip install 'lavit[released]'")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer

    # transformers takes a file that sentencepiece refuses for one of another library.
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: damaged, or no model of sentencepiece ({' '.join(str(error).split())})") from error
    first = [pieces.id_to_piece(number) for number in range(min(3, pieces.get_piece_size()))]
    if tuple(first) != SPECIAL[:3]:
        raise ValueError(f"{path}: expected {', '.join(SPECIAL[:3])} as ids 0 to 2, got {', '.join(first) or 'none'}")
    with TemporaryDirectory() as alone:  # what lies beside the file is of other versions, and says other things
        shutil.copyfile(path, Path(alone) / "tokenizer.model")
        backend = LlamaTokenizer.from_pretrained(alone, local_files_only=True).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = None
    # Both the space that encoding has put there and one more, as sentencepiece does.
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
