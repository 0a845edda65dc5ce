"""What is said of two records of the same images, by hand, and that the command measures every mode."""

from __future__ import annotations

import torch
from tiny_tokenizer import TINY

from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.agreement import MODES, Record, compare, main, record


def test_shares_are_of_patches_and_of_what_both_keep() -> None:
    features = torch.eye(4).expand(2, 4, 4)
    keep = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 1, 0, 1]]]).bool()
    exact = Record(features, keep[0], torch.tensor([5, 6, 7, 8, 9]), features)
    other = Record(features, keep[1], torch.tensor([5, 6, 7, 1, 9]), -features)
    found = compare(exact, other)
    assert (found.keep, found.ids, found.images) == (6 / 8, 3 / 4, 1 / 2)
    assert (found.features, found.rebuilt) == (1.0, -1.0)


def test_a_record_agrees_with_itself_whatever_its_batches() -> None:
    torch.manual_seed(0)
    model = LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).eval()
    images = torch.randn(3, 3, 32, 32)
    whole, parts = (record(model, images, seeds=[1, 2, 3], batch=batch) for batch in (3, 2))
    found = compare(whole, parts)
    assert (found.keep, found.ids, found.images) == (1.0, 1.0, 1.0)
    assert found.features > 1 - 1e-6 and found.rebuilt is not None and found.rebuilt > 1 - 1e-6


def test_the_command_names_every_mode_with_its_figures_or_why_it_does_not_run(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    LaVITTokenizer(LaVITTokenizerConfig.preset("small", **TINY)).save_pretrained(tmp_path)
    LaVITImageProcessor(32).save_pretrained(tmp_path)
    assert main([str(tmp_path)]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert list(lines) == list(MODES)
    assert "cosine of features" in lines["float16"]
    assert all("cosine of features" in line or line.startswith("not here: ") for line in lines.values())


def test_what_cannot_be_measured_is_told_in_a_line(tmp_path, capsys) -> None:
    LaVITImageProcessor(32).save_pretrained(tmp_path)
    (tmp_path / "bad.png").write_text("no image")
    for words in (("nowhere",), (str(tmp_path), str(tmp_path / "bad.png")), (str(tmp_path), "absent.png")):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("python -m lavit.tokenizer.agreement: error: ") and said.count("\n") == 1
        assert words[-1] in said
