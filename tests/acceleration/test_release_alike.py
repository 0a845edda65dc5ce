"""The modules that the tests accelerate have the names of the release's files, and at full size the shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import release_alike as release
import torch

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "state_dict_keys.json").read_text())
# Here patches are smaller, the MLPs' ratio is another, codes are shorter, and what is not recognised is made simpler.
OTHER_SHAPES = ("patch_embed", "mlp", "head", "in_proj", "encode_task_layer.2", "quantize", "unet")
OTHER_NAMES = ("encoder.patch_embed", "unet_attnpool")


def full_size(kind):
    with torch.device("meta"):
        if kind == "tokenizer":
            return release.Tokenizer(1408, 16, 40, 12, side=16, codes=16384, llm_width=4096)
        return release.Decoder(kind, 1408, 16, 12, 256)


FILES = {"tokenizer": 0, "lowres": 1, "highres": 2}


@pytest.mark.parametrize("kind", FILES)
def test_names_and_shapes_are_those_of_the_release_s_files(kind):
    wanted = list(KEYS.values())[FILES[kind]]
    found = {name: list(x.shape) for name, x in full_size(kind).state_dict().items()}
    wanted, found = ({name: s for name, s in d.items() if not name.startswith(OTHER_NAMES)} for d in (wanted, found))
    assert set(found) == set(wanted)
    compared = [name for name in found if not any(part in name for part in OTHER_SHAPES)]
    assert len(compared) > len(found) // 2
    assert {name: found[name] for name in compared} == {name: wanted[name] for name in compared}
