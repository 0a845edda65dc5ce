"""`lavit tokenize`: what it says about an image, what it writes, and what it does with files it cannot read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.cli import main
from lavit.commands import token_outputs
from lavit.language.model import LaVIT
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small tokenizer that has learned nothing: its selector leans a little one way or the other at every patch, so
    that sampling matters."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = LaVITTokenizer(LaVITTokenizerConfig.preset("small"))
    tokenizer.save_pretrained(folder)
    LaVITImageProcessor(32).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(32, 32), (50, 20), (1, 1), (300, 200)]):
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


def run(capsys, *argv):
    code = main(["tokenize", *map(str, argv)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def records(capsys, *argv):
    code, out, _ = run(capsys, *argv, "--json", "-")
    assert code == 0
    return {os.path.basename(r["file"]): r for r in json.loads(out)["images"]}


def test_json_says_what_encode_says(model, pictures, tmp_path, capsys):
    code, out, _ = run(capsys, pictures, "--model", model, "--json", tmp_path / "t.json")
    assert (code, out) == (0, "")
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["selection"] == "deterministic" and written["seed"] is None and written["skipped"] == []
    tokenizer = LaVITTokenizer.from_pretrained(model).eval()
    images = [Image.open(pictures / f"{i}.png") for i in range(4)]
    tokens = tokenizer.encode(LaVITImageProcessor.from_pretrained(model)(images), deterministic=True)
    ids = tokens.ragged().unbind()
    for i, record in enumerate(written["images"]):
        assert record["file"] == str(pictures / f"{i}.png")
        assert record["size"] == list(images[i].size) and record["grid"] == [8, 8]
        assert record["ids"] == ids[i].tolist() and record["tokens"] == len(ids[i])
        kept = tokens.keep[i].view(8, 8).nonzero()
        assert record["kept"] == kept.tolist()


@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_the_tokenizer_of_a_language_model_is_read_out_of_its_folder(model, pictures, tmp_path, capsys, shard):
    tokenizer = LaVITTokenizer.from_pretrained(model)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = LaVIT.from_parts(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50)), tokenizer)
    whole.save_pretrained(tmp_path / "whole", max_shard_size=shard)
    LaVITImageProcessor(32).save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1 or shard == "5GB"
    for options in [(), ("--seed", 3)]:
        theirs = records(capsys, pictures, "--model", tmp_path / "whole", *options)
        assert theirs == records(capsys, pictures, "--model", model, *options)
    weights = sorted((tmp_path / "whole").glob("*.safetensors"))[0]
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = run(capsys, pictures, "--model", tmp_path / "whole")
    assert code == 2 and "whole cannot be loaded" in err


@pytest.mark.parametrize("options", [(), ("--seed", 7)])
def test_tokens_do_not_depend_on_neighbours_order_or_batch_size(model, pictures, capsys, options):
    files = sorted(pictures.iterdir())
    together = records(capsys, *files, "--model", model, *options)
    backwards = records(capsys, *files[::-1], "--model", model, "--batch-size", 3, *options)
    alone = {}
    for file in files:
        alone |= records(capsys, file, "--model", model, *options)
    assert together == backwards == alone


def test_seed_repeats_and_sample_differs_and_tells_its_seed(model, pictures, capsys):
    def keep(*options):
        code, out, _ = run(capsys, pictures, "--model", model, "--json", "-", *options)
        written = json.loads(out)
        return written["seed"], [r["kept"] for r in written["images"]]

    assert keep("--seed", 1) == keep("--seed", 1)
    assert keep("--seed", 1)[1] != keep("--seed", 2)[1]
    seed, drawn = keep("--sample")
    assert drawn != keep()[1]
    assert keep("--seed", seed) == (seed, drawn)


def test_table_without_json(model, pictures, capsys):
    code, out, err = run(capsys, pictures, "--model", model)
    lines = out.strip().split("\n")
    assert code == 0 and err == ""
    assert lines[0].split() == ["file", "pixels", "tokens", "of", "ids"]
    assert len(lines) == 5 and "300x200" in lines[4] and lines[4].split()[3] == "64"


@pytest.mark.parametrize("option", ["--map", "--json"])
def test_no_image_that_is_read_is_overwritten(model, pictures, capsys, option):
    name = str(pictures / "photo.png")
    Image.new("RGB", (8, 8)).save(name)
    before = Path(name).read_bytes()
    code, _, err = run(capsys, str(pictures), "--model", model, option, name)
    assert code == 2 and f"{option}: {name} is one of the images to be read" in err
    assert Path(name).read_bytes() == before


def test_names_with_line_ends_or_bytes_that_are_no_text_take_one_line(model, tmp_path, capsysbinary):
    for name in (b"line\nend.png", b"\xff.png"):
        Image.new("RGB", (8, 8)).save(open(os.fsencode(tmp_path) + b"/" + name, "wb"), "png")
    (tmp_path / "a\rb.png").write_text("no image")
    assert main(["tokenize", str(tmp_path), "--model", model]) == 1
    out, err = (text.decode("utf-8") for text in capsysbinary.readouterr())
    assert [line.split()[0] for line in out.splitlines()] == [
        "file",
        f"{tmp_path}/line\\nend.png",
        f"{tmp_path}/\\udcff.png",
    ]
    assert f"lavit: skipped {tmp_path}/a\\rb.png: " in err


def test_unreadable_images_are_named_and_the_rest_goes_on(model, pictures, tmp_path, capsys):
    data = (pictures / "3.png").read_bytes()
    (pictures / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty").mkdir()
    argv = [pictures, tmp_path / "none.png", tmp_path / "empty", "--model", model, "--json", tmp_path / "t.json"]
    code, _, err = run(capsys, *argv)
    assert code == 1
    written = json.loads((tmp_path / "t.json").read_text())
    assert [os.path.basename(r["file"]) for r in written["images"]] == ["0.png", "1.png", "2.png", "3.png"]
    reasons = {os.path.basename(s["file"]): s["reason"] for s in written["skipped"]}
    assert reasons.keys() == {"cut.png", "none.png", "empty"}
    assert "truncated" in reasons["cut.png"] and reasons["none.png"] == "no such file"
    assert all(name in err and reason in err for name, reason in reasons.items())


def test_nothing_readable_is_code_2_and_writes_nothing(model, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"text")
    outputs = ["--json", tmp_path / "t.json", "--map", tmp_path / "m.png"]
    code, _, err = run(capsys, tmp_path / "a.png", "--model", model, *outputs)
    assert code == 2 and "none of the images could be read" in err
    assert os.listdir(tmp_path) == ["a.png"]


def test_map_of_one_image_and_sheet_of_several(model, pictures, tmp_path, capsys):
    assert run(capsys, pictures / "3.png", "--model", model, "--map", tmp_path / "one.png")[0] == 0
    one = Image.open(tmp_path / "one.png")
    assert one.size == (600, 400)
    assert run(capsys, pictures, "--model", model, "--map", tmp_path / "all.jpg")[0] == 0
    sheet = Image.open(tmp_path / "all.jpg")
    assert sheet.format == "JPEG" and sheet.width > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.jpg", "one.png", "pictures"]


def test_a_sheet_is_full_of_the_first_images_that_can_be_read(model, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(token_outputs, "SHEET_TILES", 2)
    shown = []
    draw = token_outputs.draw_sheet

    def note(maps, labels, tile):
        shown.extend(labels)
        return draw(maps, labels, tile)

    monkeypatch.setattr(token_outputs, "draw_sheet", note)
    for name in ("00.png", "000.png", "0000.png"):
        (pictures / name).write_bytes(b"text")
    argv = [pictures, "--model", model, "--batch-size", 1, "--map", tmp_path / "m.png"]
    code, _, err = run(capsys, *argv)
    assert code == 1 and "shows the first 2 of 4 images" in err
    assert [label.split(":")[0] for label in shown] == ["0.png", "1.png"]


def test_failure_while_writing_leaves_the_old_file(model, pictures, tmp_path, capsys, monkeypatch):
    target = tmp_path / "m.png"
    target.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run(capsys, pictures, "--model", model, "--map", target)
    assert code == 2 and "No space left on device" in err
    assert target.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["m.png", "pictures"]


def test_wrong_use_is_one_line_before_any_work(model, pictures, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "hollow").mkdir()
    cases = [
        ([], "--model DIR is needed"),
        (["--model", tmp_path / "nowhere"], "no folder"),
        (["--model", tmp_path / "hollow"], "config.json"),
        (["--model", broken], "broken cannot be loaded"),
        (["--model", model, "--map", tmp_path / "m.xyz"], "--map: expected a name that ends in"),
        (["--model", model, "--map", tmp_path / "no" / "m.png"], "folder that does not exist"),
        (["--model", model, "--json", tmp_path], "is a folder"),
        (["--model", model, "--device", "toaster"], "--device: toaster"),
        (["--model", model, "--batch-size", 0], "--batch-size"),
    ]
    for argv, message in cases:
        code, out, err = run(capsys, pictures, *argv)
        assert code == 2 and out == "", argv
        assert err.startswith("lavit: error: ") and message in err and err.count("\n") == 1, (argv, err)


def test_size_of_a_rotated_photograph_is_the_upright_one(model, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert records(capsys, tmp_path / "turned.jpg", "--model", model)["turned.jpg"]["size"] == [30, 40]


@pytest.mark.parametrize("options", [(), ("--seed", 7)])
def test_results_do_not_depend_on_workers(model, pictures, tmp_path, capsys, options):
    (pictures / "1b.png").write_bytes(b"text")
    found = []
    for workers in (0, 1, 3):
        argv = [pictures, "--model", model, "--batch-size", 2, "--workers", workers, *options]
        code, out, err = run(capsys, *argv, "--json", tmp_path / "t.json")
        table = run(capsys, *argv)[1]
        found.append((code, table, (tmp_path / "t.json").read_text(), err.splitlines()[0]))
        assert code == 1 and out == "" and len(table.splitlines()) == 5
    assert found[0] == found[1] == found[2]
    assert found[0][3] == f"lavit: skipped {pictures / '1b.png'}: not an image of a known format"


def test_lines_have_every_image_in_its_place_and_the_same_as_the_object(model, pictures, tmp_path, capsys):
    (pictures / "1b.png").write_bytes(b"text")
    for name in ("t.json", "t.jsonl"):
        argv = [tmp_path / "none.png", pictures, "--model", model, "--batch-size", 3, "--json", tmp_path / name]
        assert run(capsys, *argv)[0] == 1
    whole = json.loads((tmp_path / "t.json").read_text())
    head, *lines = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert head == {name: whole[name] for name in ("model", "selection", "seed")}
    assert [os.path.basename(line["file"]) for line in lines] == [
        "none.png", "0.png", "1.png", "1b.png", "2.png", "3.png"
    ]
    assert [line for line in lines if "ids" in line] == whole["images"]
    assert [line for line in lines if "reason" in line] == whole["skipped"]


def test_json_keeps_its_form_a_line_for_each_image(model, pictures, tmp_path, capsys):
    (pictures / "1b.png").write_bytes(b"text")
    run(capsys, pictures, "--model", model, "--json", tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    written = json.loads(text)
    head = {name: written[name] for name in ("model", "selection", "seed")}
    images, skipped = (",\n  ".join(map(json.dumps, written[name])) for name in ("images", "skipped"))
    assert text == (
        "{" + json.dumps(head)[1:-1] + f',\n "images": [\n  {images}\n ],\n "skipped": [\n  {skipped}\n ]}}\n'
    )


def test_rates_and_waits_are_told_where_there_is_more_than_one_batch(model, pictures, capsys):
    _, _, err = run(capsys, pictures, "--model", model, "--batch-size", 2, "--workers", 2)
    (line,) = err.splitlines()
    assert line.startswith("lavit: 4 images in ") and "images/s" in line
    assert all(part in line for part in ("the encoder waited", "2 readers", "the writer"))
    _, _, err = run(capsys, pictures, "--model", model, "--batch-size", 2, "--workers", 0)
    assert "nothing was read ahead" in err and err.count("\n") == 1


def test_nothing_comes_to_the_standard_output_where_nothing_can_be_read(model, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"text")
    code, out, _ = run(capsys, tmp_path / "a.png", "--model", model, "--json", "-")
    assert (code, out) == (2, "")


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_ctrl_c_ends_it_and_leaves_no_file(model, pictures, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    (many / "00000.png").write_bytes(b"text")
    for number in range(1, 5000):
        os.link(pictures / "3.png", many / f"{number:05}.png")
    words = ["tokenize", many, "--model", model, "--batch-size", "1", "--json", tmp_path / "t.json"]
    # What is started in the background may have been told to ignore Ctrl-C, which its children inherit.
    program = (
        "import signal, sys; from lavit.cli import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The first batch is written. Before, packages may warn while they are imported, as torchao does.
    assert any("00000.png" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "lavit: interrupted\n")
    assert sorted(os.listdir(tmp_path)) == ["many", "pictures"]
