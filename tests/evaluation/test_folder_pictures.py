"""Pictures drawn of a folder, by a model that writes the tokens of pictures that it is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from described_folder import write_pictures
from PIL import Image
from tiny_models import SIDE, tokenizer

from lavit.data.images import load_image
from lavit.evaluation.folder_pictures import Asked, draw_asked, rebuild_files
from lavit.tokenizer import LaVITImageProcessor


@pytest.fixture
def paths(tmp_path):
    return write_pictures(tmp_path / "images", 6)


@pytest.fixture
def places(tmp_path):
    folder = tmp_path / "drawn"
    folder.mkdir()
    return folder


class Copier:
    """Draws for the words "3" the tokens of picture 3; remembers what it was asked. Its decoder gives back the
    encoder's features of that picture: what it draws is what it is told to, beyond any doubt."""

    def __init__(self, paths):
        self.own, self.asked = tokenizer(), []
        processor = LaVITImageProcessor(SIDE)
        self.features = self.own.encode_features(processor([load_image(path) for path in paths]))
        self.visual_tokenizer = SimpleNamespace(
            dtype=torch.float32,
            device=torch.device("cpu"),
            encode_features=self.own.encode_features,
            decode=lambda codes: self.features[[int(row[0]) for row in codes.unbind()]],
        )

    def generate_tokens(self, prompts, processor, seeds, batch_size, **settings):
        from lavit.kernels import Ragged

        self.asked += prompts
        words = [prompt if isinstance(prompt, str) else prompt[1] for prompt in prompts]
        rows = [torch.tensor([int(text), 0]) for text in words]
        return SimpleNamespace(codes=Ragged.from_list(rows))


def processor():
    return SimpleNamespace(image_processor=LaVITImageProcessor(SIDE))


def test_what_is_drawn_right_has_its_picture_nearest_and_what_is_wrong_has_not(paths, places):
    model = Copier(paths)
    asked = [Asked("0", paths[0]), Asked("1", paths[1]), Asked("2", paths[3])]
    found = draw_asked(model, processor(), asked, paths, None, places, batch_size=2)
    assert [one.rank for one in found.drawn[:2]] == [0, 0] and found.drawn[2].rank > 0
    assert [round(one.cosine, 4) for one in found.drawn[:2]] == [1, 1] and found.drawn[2].cosine < 0.9999
    assert found.gallery == 6 and found.among == 1 and found.found(1) == pytest.approx(2 / 3)
    assert found.chance(1) == pytest.approx(1 / 6) and found.chance(10) == 1
    assert all(one.picture is None and one.before is None and one.tokens == 2 for one in found.drawn)


def test_a_change_is_shown_its_picture_which_is_not_in_the_gallery(paths, places):
    model = Copier(paths)
    found = draw_asked(model, processor(), [Asked("4", paths[4], paths[1])], paths, None, places)
    ((picture, words),) = model.asked
    assert np.array_equal(np.asarray(picture), np.asarray(load_image(paths[1]))) and words == "4"
    (one,) = found.drawn
    assert one.rank == 0 and one.before is not None and one.before < one.cosine and found.gallery == 5


def test_pictures_go_to_the_folder_under_the_number_of_what_is_asked(paths, places):
    def draw(codes, seeds, names):
        return [Image.new("RGB", (4, 4), (int(row[0]), 0, 0)) for row in codes.unbind()]

    asked = [Asked("5", paths[5]), Asked("2", paths[2])]
    found = draw_asked(Copier(paths), processor(), asked, [], draw, places, batch_size=1)
    assert [one.picture.name for one in found.drawn] == ["0.png", "1.png"]
    assert [load_image(one.picture).getpixel((0, 0))[0] for one in found.drawn] == [5, 2]


def test_a_true_picture_that_cannot_be_read_is_left_out(paths, places):
    model = Copier(paths)
    paths[2].write_bytes(b"no picture")
    asked = [Asked("1", paths[1]), Asked("2", paths[2])]
    found = draw_asked(model, processor(), asked, paths, None, places)
    assert [one.asked.words for one in found.drawn] == ["1"] and found.gallery == 5
    with pytest.raises(ValueError, match="none of the 1 true pictures could be read"):
        draw_asked(model, processor(), asked[1:], [], None, places)


def test_rebuilt_pictures_stand_beside_their_mean_colour(paths, places):
    true = {str(path): load_image(path) for path in paths}
    found, skipped = rebuild_files(
        tokenizer(), LaVITImageProcessor(SIDE), lambda codes, seeds, names: [true[n] for n in names], paths, places
    )
    assert not skipped and [one.psnr for one in found] == [100] * 6
    pixels = np.asarray(true[str(paths[0])]).astype(float)
    error = np.square(pixels - pixels.mean((0, 1)).round()).mean()
    assert found[0].flat == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
