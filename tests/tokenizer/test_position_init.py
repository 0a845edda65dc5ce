"""Laws of the waves that positions start as."""

import pytest
import torch

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.position_init import plane_waves


@pytest.mark.parametrize("side, width", [(8, 96), (3, 20)])
def test_places_differ_and_neighbours_are_alike(side, width):
    waves = plane_waves(side, width)
    assert waves.shape == (side * side, width)
    torch.testing.assert_close(waves.mean(0), torch.zeros(width), atol=1e-5, rtol=0)
    torch.testing.assert_close(waves.square().mean(), torch.tensor(1.0))
    distance = torch.cdist(waves, waves) + torch.eye(side * side) * 1e6
    assert distance.min() > 0.1
    nearest = distance.argmin(1)
    here, there = torch.arange(side * side), nearest
    steps = (here // side - there // side).abs() + (here % side - there % side).abs()
    assert (steps == 1).all()


def test_a_place_is_the_sum_of_its_row_and_its_column():
    waves = plane_waves(5, 16).view(5, 5, 16)
    torch.testing.assert_close(waves[1, 2] + waves[3, 4], waves[1, 4] + waves[3, 2])


def test_a_new_tokenizer_starts_with_them_and_a_loaded_one_keeps_its_own(tmp_path):
    config = LaVITTokenizerConfig.preset("small", encoder_depth=1, merger_depth=1, decoder_depth=1)
    model = LaVITTokenizer(config)
    assert torch.equal(model.feature_position, model.decoder.query_embed)
    torch.testing.assert_close(model.feature_position[0], 0.5 * plane_waves(8, 96))
    with torch.no_grad():
        model.feature_position += 1
        model.decoder.query_embed -= 1
    model.save_pretrained(tmp_path)
    loaded = LaVITTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.feature_position, model.feature_position)
    assert torch.equal(loaded.decoder.query_embed, model.decoder.query_embed)


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="width.*6"):
        plane_waves(4, 6)
