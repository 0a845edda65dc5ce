"""What a model does with a folder: every part that both allow, and of the others a sentence that says why not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from described_folder import write_described, write_pictures
from tiny_models import SIDE, tokenizer

from lavit.evaluation import examination
from lavit.evaluation.examination import NO_LANGUAGE, NO_PIXELS, Parts, examine, read_pictures
from lavit.tokenizer import LaVITImageProcessor


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    return write_described(tmp_path_factory.mktemp("described") / "scenes")


@pytest.fixture
def parts():
    return Parts(tokenizer(), LaVITImageProcessor(SIDE))


def test_a_folder_is_read_with_its_edits_and_bare_pictures_without(described, tmp_path):
    folder = read_pictures(described)
    assert len(folder.pictures) == 5 and len(folder.edits) == 5 and len(folder.data.questions) == 20
    write_pictures(tmp_path / "bare" / "below", 3)
    bare = read_pictures(tmp_path / "bare")
    assert len(bare.pictures) == 3 and not bare.edits and not bare.data.captions


def test_a_tokenizer_alone_is_told_by_its_tokens_and_the_rest_by_reasons(parts, described, tmp_path):
    found = examine(parts, read_pictures(described), tmp_path)
    assert found.missing == {
        **dict.fromkeys(("captions", "answers", "drawn", "changed"), NO_LANGUAGE),
        "rebuilt": NO_PIXELS,
    }
    assert (found.captions, found.answers, found.rebuilt, found.drawn, found.changed) == (None,) * 5
    assert len(found.tokens.seen) == 5 == found.pictures and found.tokens.grid == (4, 4)


def test_tokens_and_cosines_are_those_of_encode_and_decode(parts, described, tmp_path):
    from PIL import Image

    from lavit.evaluation.token_statistics import tokenize_and_decode

    found = examine(parts, read_pictures(described), tmp_path, batch_size=2).tokens
    pixels = parts.image_processor([Image.open(one.path) for one in found.seen])
    own = tokenize_and_decode(parts.tokenizer, parts.tokenizer.encode_features(pixels))
    assert np.array_equal(np.stack([one.keep for one in found.seen]), own.keep)
    assert np.array_equal(found.code_counts, own.code_counts)
    np.testing.assert_allclose([one.cosine for one in found.seen], own.cosines, rtol=1e-5, atol=1e-6)
    assert np.isnan(found.seen[-1].other) and np.isfinite(found.seen[0].other)  # the last batch is of one
    assert found.pixels is None  # too few pictures for a fit


def test_what_tokens_lose_is_that_of_a_measure_by_itself(parts, tmp_path):
    from PIL import Image

    from lavit.evaluation.patch_pixels import measure_patch_pixels

    config = parts.tokenizer.config
    count = 2 * -(-8 * (config.hidden_size + 1) // config.num_patches) + 2
    (tmp_path / "images").mkdir()
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (config.image_size, config.image_size, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number:03d}.png")
    (tmp_path / "drawn").mkdir()
    bare = Parts(parts.tokenizer, parts.image_processor)
    found = examine(bare, read_pictures(tmp_path / "images"), tmp_path / "drawn").tokens
    pixels = parts.image_processor([Image.open(one.path) for one in found.seen])
    own = measure_patch_pixels(parts.tokenizer, pixels.split(16))
    assert found.pixels is not None and found.pixels.images == count
    assert found.pixels.encoder == pytest.approx(own.encoder, rel=1e-4, abs=1e-6)
    assert found.pixels.tokens == pytest.approx(own.tokens, rel=1e-4, abs=1e-6)


def test_a_limit_draws_a_sample_of_pictures_and_only_these_are_asked_about(parts, described, tmp_path, monkeypatch):
    asked = {}

    def note(name):
        def run(model, processor, items, **settings):
            asked[name] = [item.image for item in items], settings
            raise ValueError(f"no {name} here")

        return run

    monkeypatch.setattr(examination, "say_captions", note("captions"))
    monkeypatch.setattr(examination, "give_answers", note("answers"))
    monkeypatch.setattr(examination, "draw_asked", lambda *a, **k: note("drawn")(a[0], a[1], [], **k))
    language = SimpleNamespace(config=SimpleNamespace(image_objective="classify"))
    whole = Parts(parts.tokenizer, parts.image_processor, language)
    found = examine(
        whole, read_pictures(described), tmp_path, limit=3, seed=1, texts={"min_new": 1}, drawing={"top_k": 2}
    )
    sample = {one.path for one in found.tokens.seen}
    assert len(sample) == 3 and found.pictures == 5
    assert set(asked["captions"][0]) == sample >= set(asked["answers"][0]) and len(asked["answers"][0]) == 3
    assert asked["captions"][1]["min_new"] == 1 and asked["drawn"][1]["top_k"] == 2
    assert found.missing["captions"] == "no captions here" and found.missing["changed"] == "no drawn here"


def test_a_model_of_embeddings_draws_nothing_and_a_bare_folder_says_nothing(parts, tmp_path):
    write_pictures(tmp_path / "bare", 2)
    language = SimpleNamespace(config=SimpleNamespace(image_objective="regress"))
    whole = Parts(parts.tokenizer, parts.image_processor, language)
    missing = examine(whole, read_pictures(tmp_path / "bare"), tmp_path).missing
    assert "regresses embeddings" in missing["drawn"] and "has no captions" in missing["captions"]
    assert "has no questions" in missing["answers"]
