"""Laws of the patches of codes: they are pixels of the pictures, of the code that they are shown for, alike for any
batch size, and the figures are those of a plain computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from described_folder import write_pictures
from PIL import Image
from tiny_models import SIDE, tokenizer

from lavit.evaluation.code_patches import BLANK, collect_code_patches
from lavit.tokenizer import LaVITImageProcessor

PATCH = 8


@pytest.fixture(scope="module")
def model():
    return tokenizer()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("codes") / "images", 9)


@pytest.fixture(scope="module")
def by_code(model, paths):
    """Plainly: of each code its patches, as (picture, row, column)."""
    processor = LaVITImageProcessor(SIDE)
    found: dict[int, list[tuple[int, int, int]]] = {}
    for number, path in enumerate(paths):
        tokens = model.encode(processor(Image.open(path)), deterministic=True)
        kept = tokens.keep[0].nonzero().flatten().tolist()
        for code, patch in zip(tokens.ids.tolist(), kept, strict=True):
            found.setdefault(code, []).append((number, *divmod(patch, SIDE // PATCH)))
    return found


def collect(model, paths, **settings):
    return collect_code_patches(model, LaVITImageProcessor(SIDE), paths, **settings)


def pixels(paths, place, context=0):
    """Of a patch with what is around it; BLANK beyond the border."""
    number, row, column = place
    picture = np.pad(np.asarray(Image.open(paths[number])), ((8, 8), (8, 8), (0, 0)), constant_values=BLANK)
    side = PATCH + 2 * context
    top, left = 8 + PATCH * row - context, 8 + PATCH * column - context
    return picture[top : top + side, left : left + side]


def test_codes_are_counted_as_encode_gives_them_the_most_used_first(model, paths, by_code):
    found = collect(model, paths, codes=3, batch_size=4)
    assert {n: int(c) for n, c in enumerate(found.counts) if c} == {code: len(own) for code, own in by_code.items()}
    assert found.tokens == sum(map(len, by_code.values())) and found.images == len(paths)
    assert found.used == len(by_code) and len(found.codes) == min(3, len(by_code))
    uses = [code.uses for code in found.codes]
    assert uses == sorted(map(len, by_code.values()), reverse=True)[:3]
    assert sum(code.share for code in collect(model, paths).codes) == pytest.approx(1)


def test_patches_shown_are_pixels_of_pictures_that_chose_the_code(model, paths, by_code):
    for code in collect(model, paths, patches=100, context=4).codes:
        wanted = sorted(pixels(paths, place, 4).tobytes() for place in by_code[code.number])
        assert sorted(patch.tobytes() for patch in code.patches) == wanted


def test_some_of_many_patches_are_the_same_for_any_batch_size_and_others_for_another_seed(model, paths):
    one, two, other = (
        collect(model, paths, patches=3, batch_size=size, seed=seed).codes for size, seed in ((9, 0), (2, 0), (9, 1))
    )
    assert all(len(code.patches) == min(3, code.uses) for code in one)
    assert all(np.array_equal(a.patches, b.patches) for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a.patches, b.patches) for a, b in zip(one, other, strict=True))


def test_variance_and_nearness_are_those_of_the_definition(model, paths, by_code):
    found = collect(model, paths)
    rows = {code: np.stack([pixels(paths, place) for place in own]) / 255 for code, own in by_code.items()}
    for code in found.codes:
        own = rows[code.number]
        wanted = own.var(0, ddof=1).mean() if len(own) > 1 else np.nan
        assert code.variance == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)
    assert found.variance == pytest.approx(np.concatenate(list(rows.values())).var(0, ddof=1).mean(), rel=1e-9)
    many = [own for own in rows.values() if len(own) > 1]
    weights = [len(own) - 1 for own in many]
    assert found.within == pytest.approx(np.average([o.var(0, ddof=1).mean() for o in many], weights=weights), rel=1e-9)
    images = LaVITImageProcessor(SIDE)([Image.open(path) for path in paths])
    vectors = model.latents(images, deterministic=True).values
    near = (vectors - model.quantize.lookup(model.quantize.nearest(vectors))).norm(dim=-1)
    total = sum(code.distance * code.uses for code in found.codes)
    torch.testing.assert_close(torch.tensor(total), near.double().sum(), rtol=1e-4, atol=1e-4, check_dtype=False)


def test_alike_patches_have_no_variance(model, tmp_path):
    for number in range(3):
        Image.new("RGB", (SIDE, SIDE), (90, 20, 200)).save(tmp_path / f"{number}.png")
    found = collect(model, sorted(tmp_path.iterdir()))
    assert found.variance == pytest.approx(0, abs=1e-12)
    assert all(code.variance == pytest.approx(0, abs=1e-12) for code in found.codes if code.uses > 1)


def test_a_picture_that_cannot_be_read_is_left_out_and_named(model, paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = collect(model, [*paths[:2], tmp_path / "bad.png", *paths[2:]])
    assert found.images == len(paths) and [item.name for item in found.skipped] == [str(tmp_path / "bad.png")]
    assert np.array_equal(found.counts, collect(model, paths).counts)
    with pytest.raises(ValueError, match="images: none of 1 could be used; .*bad.png"):
        collect(model, [tmp_path / "bad.png"])
