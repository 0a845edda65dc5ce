"""Old paths of modules still import, and say once where their names are now."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from lavit.compatibility import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_imports_with_one_warning_that_names_the_new_one(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        import_module(old)
    (one,) = [warning for warning in told if issubclass(warning.category, DeprecationWarning) and old in str(warning)]
    assert all(home in str(one.message) for home in MOVED[old])
    assert all(find_spec(home) is not None for home in MOVED[old])


@pytest.mark.parametrize(
    "old, name, new",
    [
        ("lavit.hub", "load_released_tokenizer", "lavit.released.tokenizer"),
        ("lavit.hub", "load_released_lavit", "lavit.released.language"),
        ("lavit.hub", "read_tensors", "lavit.released.files"),
        ("lavit.hub_pixels", "load_released_pixels", "lavit.released.pixels"),
        ("lavit.data.shapes", "ShapesWorld", "lavit.shapes.world"),
        ("lavit.data.shapes_language", "Sequencing", "lavit.data.sequences"),
        ("lavit.training.recipe", "OptimizerConfig", "lavit.training.engine.recipe"),
        ("lavit.training.encoder", "pretrain_encoder", "lavit.training.tokenizer.pretrain_encoder"),
        ("lavit.training.tokenizer", "train_tokenizer", "lavit.training.tokenizer.train"),
        ("lavit.training.tokenizer", "TokenizerTrainingConfig", "lavit.training.tokenizer.recipe"),
        ("lavit.training.language", "ImageStore", "lavit.training.language.data"),
        ("lavit.training.pixels", "train_pixels", "lavit.training.pixels.train"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_name_is_the_new_one_itself(old, name, new):
    assert getattr(import_module(old), name) is getattr(import_module(new), name)


def test_names_of_a_module_that_became_a_package_warn_once_at_the_line_that_asks():
    program = (
        "import warnings\n"
        "warnings.simplefilter('always')\n"
        "from lavit.training.tokenizer import train_tokenizer, TrainingResult\n"
        "import lavit.hub\n"
        "from lavit.hub import load_released_tokenizer\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line and "lavit." in line]
    assert done.returncode == 0 and [line.split(": ")[0] for line in told] == ["<string>:3", "<string>:4"], done.stderr
    assert "lavit.training.tokenizer.train" in told[0] and "lavit.released.tokenizer" in told[1]


def test_new_paths_and_attributes_of_packages_warn_of_nothing():
    rooms = ["recipe", "data", "objective", "train"]
    stages = ("encoder", "tokenizer", "language", "pixels")
    lines = [f"from lavit.training.{stage} import {', '.join(rooms)}" for stage in stages]
    lines += ["from lavit.training.tokenizer import initialization, pretrain_encoder"]
    lines += ["import lavit.data, lavit.tokenizer"]
    lines += ["lavit.data.stream, lavit.data.images, lavit.data.annotations, lavit.tokenizer.processing"]
    strict = "import warnings; warnings.filterwarnings('error', message='lavit')"
    done = subprocess.run([sys.executable, "-c", "\n".join([strict, *lines])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_star_of_an_old_path_has_what_it_had():
    found: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("from lavit.hub import *", found)
        from lavit.training.recipe import SHAPES
    assert {"load_released_tokenizer", "load_released_lavit", "read_tensors"} <= found.keys() and SHAPES == "shapes"


def test_no_text_sends_a_reader_to_an_old_path():
    root = Path(__file__).parents[2]
    texts = [*root.glob("*.md"), *(root / "lavit").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    old = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in MOVED))
    wrong = [
        f"{path.relative_to(root)}: {found[0]}"
        for path in texts
        if "compatibility" not in path.parts and path.name != "CHANGELOG.md"
        for found in old.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not wrong


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="lavit.training.tokenizer.*nothing"):
        _ = import_module("lavit.training.tokenizer").nothing
    with pytest.raises(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("from lavit.hub import nothing")


def test_no_old_path_is_in_the_way_of_a_module_that_exists():
    for old in MOVED:
        spec = find_spec(old)
        assert spec is not None and type(spec.loader).__module__ == "lavit.compatibility", old
