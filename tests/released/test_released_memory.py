"""Loading a release needs the memory of its weights, whatever precision and format they are stored in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from released_folder import TEXT_SIZE, sentencepiece_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lavit.language.continuous_features import Understanding
from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig

WIDTH, MOST = 1024, 1.15
SIZES: dict[str, Any] = {
    "image_size": 56,
    "hidden_size": 768,
    "encoder_depth": 4,
    "encoder_heads": 12,
    "encoder_head_dim": 64,
    "merger_depth": 2,
    "decoder_depth": 2,
    "num_heads": 12,
    "num_codes": 512,
    "projection_dim": WIDTH,
    "condition_dim": 64,
    "merge": "dense",
    "decoder_condition": "lowres",
}

# In a process of its own, which has imported everything: the most that loading adds, by the weights that it gives.
MEASURE = """
import json, re, sys, torch
from pathlib import Path
import lavit.language.model
from lavit.released.language import load_released_lavit
from lavit.released.tokenizer import load_released_tokenizer
from lavit.tokenizer import LaVITTokenizerConfig
from transformers import LlamaForCausalLM
import lavit.released.convert

folder, sizes, what, dtype, text_size = json.loads(sys.argv[1])
status = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
config, dtype = LaVITTokenizerConfig.preset("lavit-g", **sizes), getattr(torch, dtype)
before = max(status("VmHWM"), status("VmRSS"))
if what == "converted":
    from lavit.released.convert import convert_release
    convert_release(folder, folder + "-own", config=config, text_size=text_size, visual_dtype=dtype)
    print(json.dumps({"grown": status("VmHWM") - before}))
    sys.exit()
if what == "tokenizer":
    model = load_released_tokenizer(folder, config=config, dtype=dtype)
else:
    model = load_released_lavit(folder, config=config, text_size=text_size, dtype=dtype, visual_dtype=dtype)
weights = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps({"weights": weights, "grown": status("VmHWM") - before}))
"""


def parts(model: torch.nn.Module, prefix: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    state = model.state_dict().items()
    return {k.removeprefix(prefix): torch.full(t.shape, 0.01, dtype=dtype) for k, t in state if k.startswith(prefix)}


def write(folder: Path, form: str) -> Path:
    """Some 600 MB in float32, or half of that in float16."""
    dtype = torch.float16 if form == "float16" else torch.float32
    config = LaVITTokenizerConfig.preset("lavit-g", **SIZES)
    with torch.device("meta"):
        tokenizer, understanding = LaVITTokenizer(config), Understanding(config, WIDTH)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8}
        llama = LlamaForCausalLM(LlamaConfig(vocab_size=TEXT_SIZE + 2 + 512, dtype="float16", **sizes))
    visual, language = folder / "visual_tokenizer", folder / "language_model"
    visual.mkdir(parents=True)
    language.mkdir()
    torch.save(parts(tokenizer, "encoder.", dtype), visual / "eva_vitg_psz14.bin")
    torch.save(parts(tokenizer, "decoder.", dtype), visual / "tokenizer_decoder.bin")
    rest = parts(tokenizer, "", dtype)
    own = ("encoder.", "decoder.", "quantize.cluster_size", "quantize.updates")
    torch.save({k: t for k, t in rest.items() if not k.startswith(own)}, visual / "tokenizer_encoder.bin")
    torch.save(parts(understanding, "", dtype), language / "visual_weight.bin")
    llama.config.save_pretrained(language)
    state = parts(llama, "", dtype)
    if form == "safetensors":
        save_file(state, language / "model.safetensors", metadata={"format": "pt"})
        return folder
    places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(sorted(state))}
    for file in set(places.values()):
        torch.save({name: state[name] for name, place in places.items() if place == file}, language / file)
    (language / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def measured(folder: Path, what: str, dtype: str) -> dict[str, int]:
    argument = json.dumps([str(folder), SIZES, what, dtype, TEXT_SIZE])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, argument], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="pages are given back where Linux tells of them")
@pytest.mark.parametrize(
    ("form", "what", "dtype"),
    [
        ("float32", "tokenizer", "float32"),
        ("float32", "model", "bfloat16"),
        ("float16", "model", "float32"),
        ("safetensors", "model", "float32"),
    ],
)
def test_the_peak_of_loading_is_the_weights_and_a_little(tmp_path: Path, form: str, what: str, dtype: str) -> None:
    found = measured(write(tmp_path / "release", form), what, dtype)
    assert found["weights"] > 250e6 and found["grown"] <= MOST * found["weights"], found


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="pages are given back where Linux tells of them")
def test_converting_takes_the_memory_of_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "release", "float32")
    (folder / "language_model" / "tokenizer.model").write_bytes(sentencepiece_model())
    weights = sum(path.stat().st_size for path in folder.rglob("*.bin"))
    found = measured(folder, "converted", "float32")
    assert weights > 500e6 and found["grown"] <= MOST * weights, (weights, found)
    written = sum(path.stat().st_size for path in Path(f"{folder}-own").glob("*.safetensors"))
    assert 0.99 * weights < written < 1.01 * weights
