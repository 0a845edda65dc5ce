"""The encoder's features of a picture are computed once for all stages, in the precision and place of stage 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import captioned_folder

from lavit.tokenizer import LaVITTokenizer
from lavit.training.engine.feature_files import CachePlaces
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.language.train import train_language
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.pixels.train import train_pixels
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import train_tokenizer

NARROW = {"encoder_depth": 1, "merger_depth": 1, "decoder_depth": 1, "num_codes": 16, "projection_dim": 32}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pictures have been encoded since it was last asked."""
    seen: list[int] = []
    encode = LaVITTokenizer.encode_features
    monkeypatch.setattr(
        LaVITTokenizer, "encode_features", lambda self, images: seen.append(len(images)) or encode(self, images)
    )

    def count() -> int:
        found = sum(seen)
        seen.clear()
        return found

    return count


@pytest.mark.parametrize("elsewhere", [False, True])
def test_features_of_small_64_are_computed_once_for_all_stages(tmp_path: Path, encoded, elsewhere: bool) -> None:
    data, run = captioned_folder(tmp_path / "data", 6, size=64), tmp_path / "tokenizer"
    kept = tmp_path / "kept" if elsewhere else run / "features"
    short = {"loop.steps": 1, "loop.log_every": 1, "device": "cpu", "tensorboard": False, "workers": 0}
    short |= {"data": str(data)}
    first = short | {"tokenizer": NARROW, "encoder_steps": 1, "loop.batch_size": 2, "output": str(run)}
    first |= {"cache.folder": str(kept)} if elsewhere else {}
    train_tokenizer(TokenizerTrainingConfig.recipe("small-64", first))
    assert encoded() == 6

    def language(name: str) -> int:
        more = {"tokenizer": str(run), "text_config": TEXT, "output": str(tmp_path / name)}
        train_language(LanguageTrainingConfig.recipe("small", short | more))
        return encoded()

    def pixels(name: str, cached: bool) -> int:
        more = {"unet": {"channels": [8, 16], "groups": 4}, "loop.batch_size": 2, "cache.enabled": cached}
        more |= {"tokenizer": str(run), "output": str(tmp_path / name)}
        train_pixels(PixelsTrainingConfig.recipe("small", short | more))
        return encoded()

    assert language("language") == 0 and pixels("pixels", False) == 0
    captioned_folder(data, 7, size=64)  # another one beside them
    assert language("language-of-seven") == 1 and pixels("pixels-of-seven", False) == 0
    captioned_folder(data, 8, size=64)
    assert pixels("pixels-of-eight", True) == 1 and language("language-of-eight") == 0
    pieces = list(tmp_path.rglob("features-*/*.npy"))
    assert {piece.parent.parent for piece in pieces} == {kept}
    rows = [np.load(piece) for piece in pieces]
    assert {part.dtype for part in rows} == {np.dtype(np.float16)} and sum(map(len, rows)) == 8


def test_a_place_of_stage_1_that_is_gone_is_no_place(tmp_path: Path) -> None:
    for number, words in enumerate(("cache: {folder: %s}" % (tmp_path / "gone"), "cache: 3", "{", "")):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "training.yaml").write_text(words)
        places = CachePlaces.of(LanguageTrainingConfig(tokenizer=str(run), output=str(tmp_path / "out")))
        assert places.write == run / "features" and places.read == (run / "features", tmp_path / "out" / "features")
