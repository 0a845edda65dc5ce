"""Configurations from YAML files and command lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from lavit.training.encoder.recipe import EncoderTrainingConfig
from lavit.training.engine import config
from lavit.training.language.recipe import LanguageTrainingConfig
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig

RESOLVED = yaml.safe_load((Path(__file__).parents[2] / "golden" / "recipes.yaml").read_text())
STAGES = {
    "encoder": EncoderTrainingConfig,
    "tokenizer": TokenizerTrainingConfig,
    "language": LanguageTrainingConfig,
    "pixels": PixelsTrainingConfig,
}


@dataclass
class Inner:
    lr: float = config.setting(1e-3, "the rate")
    steps: int = 10
    shape: Literal["round", "square"] = "round"


@dataclass
class Other:
    steps: int = 5


@dataclass
class Pair:
    first: Inner = field(default_factory=lambda: Inner(0.5, 1))


@dataclass
class Outer:
    name: str = "a"
    on: bool = False
    limit: int | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    words: list[str] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    other: Other = field(default_factory=Other)


def test_command_line_overrides_file_overrides_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("name: file\ninner: {lr: 1e-4, steps: 7}\nbetas: [0.5, 0.6]\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--inner.lr", "3e-5", "--on", "--limit=4", "--free.k", "1e-4"]
    got, flags = config.parse(Outer, [*words, "--resume"], flags=("resume",))
    assert flags == {"resume"}
    assert got == Outer("file", True, 4, (0.5, 0.6), [], {"k": 1e-4}, Inner(3e-5, 7))


def test_a_recipe_extends_another_of_its_folder_and_mappings_merge(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nlimit: 3\nfree: {k: 1, deep: {x: 1, y: 2}}\ninner: {lr: 0.5, steps: 7}")
    (tmp_path / "b.yaml").write_text("extends: a\nname: b\nfree: {deep: {y: 3}}\ninner: {steps: 8}\n")
    (tmp_path / "c.yaml").write_text("inner: {shape: square}\nextends: b.yaml\nlimit: null\n")
    free = {"k": 1, "deep": {"x": 1, "y": 3}}
    assert config.load(Outer, tmp_path / "b.yaml") == Outer("b", limit=3, free=free, inner=Inner(0.5, 8))
    got = config.load(Outer, tmp_path / "c.yaml", {"inner.steps": "9"})
    assert got == Outer("b", limit=None, free=free, inner=Inner(0.5, 9, "square"))


def test_a_recipe_extends_a_preset_where_there_is_none_of_the_name_beside_it(tmp_path):
    (tmp_path / "small.yaml").write_text("extends: small\nloop: {steps: 7}\n")
    small = TokenizerTrainingConfig.recipe()
    got = TokenizerTrainingConfig.read(tmp_path / "small.yaml")
    assert config.to_dict(got) == {**config.to_dict(small), "loop": {**config.to_dict(small.loop), "steps": 7}}


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"a": "extends: b", "b": "extends: a"}, "b.yaml extends a, which extends it in turn"),
        ({"a": "extends: a"}, "a.yaml extends a, which extends it in turn"),
        ({"a": "extends: ../b"}, r"expected the name of a recipe of the same folder, got '../b' in .*a.yaml"),
        ({"a": "extends: [b]"}, "expected the name of a recipe of the same folder"),
        ({"a": "extends: missing"}, "cannot read .*missing.yaml"),
        ({"a": "extends: b", "b": "- 1"}, "b.yaml must hold a mapping"),
    ],
)
def test_what_cannot_be_extended_is_told(tmp_path, texts, told):
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(config.ConfigError, match=told):
        config.load(Outer, tmp_path / "a.yaml")


def test_section_may_be_left_out_where_one_has_the_name():
    assert config.load(Outer, None, {"lr": "0.5", "shape": "square"}).inner == Inner(0.5, 10, "square")
    with pytest.raises(ValueError, match="inner.steps, other.steps"):
        config.load(Outer, None, {"steps": "1"})


def test_section_keeps_the_defaults_that_its_owner_gives_it():
    assert config.load(Pair, None, {"first.steps": 2}).first == Inner(0.5, 2)
    assert config.from_dict(Pair, {"first": None}).first == Inner(0.5, 1)
    assert "the rate [0.5]" in config.describe(Pair)


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        (float, "1e-4", 1e-4),
        (int, "5e4", 50000),
        (int, 3.0, 3),
        (bool, "no", False),
        (int | None, "none", None),
        (tuple[float, float], "0.9,0.99", (0.9, 0.99)),
        (list[int], "[1, 2]", [1, 2]),
        (str, 12, "12"),
        (dict[str, Any], "{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
    ],
)
def test_values_take_the_type_of_their_field(kind, text, wanted):
    got = config.convert(text, kind, "x")
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, "2.5"), (int, True), (float, "fast"), (bool, "maybe"), (tuple[float, float], "1"), (Literal["a"], "b"),
     (int, None), (str, [1]), (Inner, 3), (int, "inf"), (dict[str, Any], "{a"), (list[int], "[1")],
)  # fmt: skip
def test_wrong_value_names_the_setting_and_what_came(kind, value):
    with pytest.raises(config.ConfigError, match=r"^here: "):
        config.convert(value, kind, "here")


@pytest.mark.parametrize("data", [{"innner": {}}, {"inner": {"lrr": 1}}])
def test_unknown_key_names_the_nearest(data):
    with pytest.raises(ValueError, match="did you mean inner"):
        config.from_dict(Outer, data)


def test_unknown_word_on_the_command_line_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean inner.shape"):
        config.parse(Outer, ["--shap", "round"])
    with pytest.raises(ValueError, match="--name: a value is missing"):
        config.parse(Outer, ["--name"])
    with pytest.raises(ValueError, match="word: expected --key value"):
        config.parse(Outer, ["word"])


def test_saved_configuration_reads_back_the_same(tmp_path):
    wanted = Outer("b", True, None, (0.25, 1e-5), ["x", "1"], {"deep": {"a": [1, None]}}, Inner(1e-4, 3, "square"))
    config.save(wanted, tmp_path / "c.yaml")
    assert config.load(Outer, tmp_path / "c.yaml") == wanted


def test_every_recipe_is_pinned():
    folders = {stage: cls.recipe_file("small").parent for stage, cls in STAGES.items()}
    files = [f"{stage}-{path.stem}" for stage, folder in folders.items() for path in folder.glob("*.yaml")]
    assert sorted(RESOLVED) == sorted(files)


@pytest.mark.parametrize("name", sorted(RESOLVED))
def test_recipe_resolves_to_its_pinned_values_and_reads_back(name, tmp_path):
    stage, _, preset = name.partition("-")
    recipe = STAGES[stage].recipe(preset)
    assert config.to_dict(recipe) == RESOLVED[name]
    config.save(recipe, tmp_path / "training.yaml")
    assert config.load(type(recipe), tmp_path / "training.yaml") == recipe


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n", "\xff"])
def test_broken_file_is_a_configuration_error(tmp_path, text):
    (tmp_path / "c.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(config.ConfigError, match="c.yaml"):
        config.load(Outer, tmp_path / "c.yaml")
    with pytest.raises(config.ConfigError, match="none.yaml"):
        config.load(Outer, tmp_path / "none.yaml")


def test_help_shows_every_setting():
    text = config.describe(Outer)
    assert "--inner.lr" in text and "the rate [0.001]" in text and "--free" in text


def test_yaml_is_readable():
    assert yaml.safe_load(config.to_yaml(Outer())) == config.to_dict(Outer())
