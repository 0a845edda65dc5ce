"""``lavit quickstart``: the whole of stage 1 in minutes, on whatever machine this is, with a report at the end.

It draws the shapes world, trains a small encoder and a small tokenizer on it, tokenizes held-out scenes and real
photographs, asks what the tokens still know, and writes one HTML page. No data, network or GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.logging import disable_progress_bar

import lavit
from lavit.data import load_image
from lavit.data.shapes import Scenes, ShapesWorld, caption
from lavit.evaluation import chance, tokenize_and_decode, tokens_by_objects, train_probe
from lavit.evaluation.probe import CellProbe
from lavit.figure import write_figure
from lavit.files import atomic_write
from lavit.kernels import dispatch
from lavit.photographs import find_photographs
from lavit.report import Photo, ProbeRow, QuickstartResult, Scene, Stage, write_report
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenmap import shrink
from lavit.training.distributed import pick_device
from lavit.training.encoder import pretrain_encoder
from lavit.training.metrics import duration
from lavit.training.stage1 import measure_features
from lavit.training.tokenizer import TokenizerTrainingConfig, save_model, train_tokenizer

REPORT, FIGURE, RESULTS, MODEL = "report.html", "figure.png", "results.json", "tokenizer"
MEASURED = 2048  # scenes that the mean and deviation of the features are taken from
PHOTO_SIDE = 512


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of a run. The defaults are the quickstart; ``fast`` gives a miniature that learns next to nothing.

    output: folder of the report, results.json and the model. device: "auto", "cpu", "cuda" or "cuda:N".
    encoder_steps, recipe: of the two trainings; ``recipe`` overrides the preset's, as `lavit train tokenizer` does.
    train_scenes, test_scenes, probe_scenes: scenes to train on, to measure on, and to train the probes on.
    """

    output: Path = Path("quickstart")
    seed: int = 0
    device: str = "auto"
    encoder_steps: int = 400
    encoder_batch: int = 64
    train_scenes: int = 8192
    test_scenes: int = 1000
    probe_scenes: int = 3000
    probe_steps: int = 400
    shown_scenes: int = 12
    shown_photos: int = 8
    recipe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fast(cls, **changes: Any) -> QuickstartConfig:
        """Every stage once, in seconds, to see that the machine can do it."""
        sizes: dict[str, Any] = {
            "encoder_steps": 6,
            "encoder_batch": 16,
            "train_scenes": 128,
            "test_scenes": 64,
            "probe_scenes": 64,
            "probe_steps": 5,
            "shown_scenes": 4,
            "shown_photos": 3,
            "recipe": {"loop.steps": 10, "loop.batch_size": 16, "loop.log_every": 5, "vectors_per_code": 1},
        }
        return cls(**{**sizes, **changes})


def run_quickstart(
    config: QuickstartConfig, *, say: Callable[[str], None] = print, command: str = "lavit quickstart"
) -> QuickstartResult:
    """Do it all and write the report, the numbers and the model into ``config.output``, which is made if need be.

    ``say`` gets a line of text now and then. The result depends on the seed, the device and the number of threads, and
    on nothing else; the caller's random generators are left as they were.
    """
    device = pick_device(config.device)
    config.output.mkdir(parents=True, exist_ok=True)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        return _Quickstart(config, device, say).run(command)


class _Quickstart:
    """The stages in their order. What they share: the model, the clock, and the estimates of what is to come."""

    def __init__(self, config: QuickstartConfig, device: torch.device, say: Callable[[str], None]) -> None:
        self.config, self.device, self.say = config, device, say
        self.recipe = TokenizerTrainingConfig.recipe("small", config.recipe)
        self.recipe.seed, self.recipe.device, self.recipe.output = config.seed, str(device), None
        self.processor = LaVITImageProcessor(size=self._preset().image_size)
        self.stages: list[Stage] = []
        self.estimates: dict[str, float] = {}

    def run(self, command: str) -> QuickstartResult:
        config, began = self.config, time.perf_counter()
        self.say(f"LaVIT quickstart on {self._device_name()}, seed {config.seed}, into {config.output}/")
        self._plan()

        with self._stage("scenes") as note:
            train = ShapesWorld(config.seed).scenes(max(config.train_scenes, config.probe_scenes))
            test = ShapesWorld(config.seed, "test").scenes(config.test_scenes)
            note(f"{len(train)} scenes of the shapes world to learn from, {len(test)} others to measure on")

        with self._stage("encoder") as note:
            torch.manual_seed(config.seed)
            model = self._new_model()
            encoder_history = pretrain_encoder(
                model,
                steps=config.encoder_steps,
                batch_size=config.encoder_batch,
                seed=config.seed,
                progress=self._say_row("objects named", "accuracy"),
            )
            note(f"{config.encoder_steps} steps: draw every patch again and name what it shows; then frozen")

        with self._stage("features") as note:
            measure_features(model, self._image_batches(train.images[:MEASURED]))
            features = self._encode(model, train.images)
            held_out = self._encode(model, test.images)
            note("the frozen encoder's features of all scenes, computed once")

        with self._stage("tokenizer") as note:
            trained = train_tokenizer(
                self.recipe,
                model=model,
                features=features[: config.train_scenes],
                progress=self._say_row("reconstruction", "reconstruction_loss"),
            )
            save_model(model, self.processor, config.output / MODEL)
            note(f"{self.recipe.loop.steps} steps of {self.recipe.loop.batch_size} scenes; saved in {MODEL}/")

        with self._stage("evaluation") as note:
            statistics = tokenize_and_decode(model, held_out)
            learned_from = tokenize_and_decode(model, features[: config.probe_scenes]).decoded
            known = train.cells[: config.probe_scenes]
            from_tokens = train_probe(learned_from, known, steps=config.probe_steps, seed=config.seed)
            from_encoder = train_probe(
                features[: config.probe_scenes], known, steps=config.probe_steps, seed=config.seed
            )
            rows = self._probe_rows(from_tokens, from_encoder, statistics.decoded, held_out, known, test)
            scenes = self._scenes(test, statistics, from_tokens)
            note("tokens of held-out scenes, decoded and put before small classifiers")

        with self._stage("photographs") as note:
            photos = self._photographs(model)
            note(f"{len(photos)} real photographs, made as small as the scenes")

        result = QuickstartResult(
            command=command,
            seconds=time.perf_counter() - began,
            device=self._device_name(),
            threads=torch.get_num_threads(),
            seed=config.seed,
            versions=_versions(),
            model_path=str(config.output / MODEL),
            parameters=_parameters(model),
            stages=self.stages,
            encoder_history=encoder_history,
            history=trained.history,
            scenes=scenes,
            photos=photos,
            content=tokens_by_objects(test.objects, statistics.tokens),
            code_counts=statistics.code_counts.tolist(),
            cosines=statistics.cosines.tolist(),
            probe=rows,
            kernels=dispatch.table(self.device.type),
            grid=_grid(model),
        )
        write_report(result, config.output / REPORT)
        write_figure(result, config.output / FIGURE)
        numbers = summary(result)
        with atomic_write(config.output / RESULTS, "w") as file:
            file.write(json.dumps(numbers, indent=2) + "\n")
        self._say_summary(numbers)
        return result

    # Stages.

    def _image_batches(self, images: np.ndarray) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(images), 256):
            yield {"images": self.processor(images[start : start + 256])}

    def _encode(self, model: LaVITTokenizer, images: np.ndarray) -> Tensor:
        """(n, H, W, 3) uint8 -> (n, N, C) features on the device of the run."""
        batches = self._image_batches(images)
        return torch.cat([model.encode_features(batch["images"].to(self.device)) for batch in batches])

    def _probe_rows(
        self,
        from_tokens: CellProbe,
        from_encoder: CellProbe,
        decoded: Tensor,
        features: Tensor,
        known: np.ndarray,
        test: Scenes,
    ) -> list[ProbeRow]:
        tokens, encoder = from_tokens.score(decoded, test.cells), from_encoder.score(features, test.cells)
        blind = chance(known, test.cells)
        return [
            ProbeRow("Scenes with all four cells right", tokens.scene, encoder.scene, blind.scene),
            ProbeRow("Cells: shape and colour, or nothing", tokens.cell, encoder.cell, blind.cell),
        ]

    def _scenes(self, test: Scenes, statistics: Any, probe: CellProbe) -> list[Scene]:
        count = min(self.config.shown_scenes, len(test))
        read = probe.read(statistics.decoded[:count]).tolist()
        return [
            Scene(
                image=test.images[k],
                keep=statistics.keep[k],
                caption=caption(test.cells[k].tolist()),
                tokens=int(statistics.tokens[k]),
                cosine=float(statistics.cosines[k]),
                read_back=caption(read[k]),
                correct=read[k] == test.cells[k].tolist(),
            )
            for k in range(count)
        ]

    def _photographs(self, model: LaVITTokenizer) -> list[Photo]:
        found = find_photographs(self.config.shown_photos)
        if not found:
            self.say("  no photographs: they come with scikit-image or scikit-learn, and neither is installed")
            return []
        pictures = [load_image(photograph.path) for photograph in found]
        features = model.encode_features(self.processor(pictures).to(self.device))
        tokens = model.encode(features=features, deterministic=True)
        cosines = F.cosine_similarity(model.decode(tokens), features, dim=-1).mean(1).tolist()
        keep, lengths = tokens.keep.cpu().numpy(), tokens.lengths().tolist()
        return [
            Photo(one.name, one.source, np.asarray(shrink(picture, PHOTO_SIDE)), keep[k], lengths[k], cosines[k])
            for k, (one, picture) in enumerate(zip(found, pictures, strict=True))
        ]

    # What is said, and how long it will take.

    def _plan(self) -> None:
        """Time a few steps of everything on a throw-away model, and say what will take how long."""
        config, recipe = self.config, self.recipe
        model, scenes = self._new_model(), ShapesWorld(config.seed).scenes(64)
        features = self._encode(model, scenes.images)
        few: dict[str, Any] = {"steps": 8, "log_every": 1}
        encoder = _step_seconds(
            lambda tick: pretrain_encoder(model, batch_size=config.encoder_batch, progress=tick, **few)
        )
        short = replace(recipe, first_phase=0.0, codebook="keep", loop=replace(recipe.loop, **few))
        tokenizer = _step_seconds(
            lambda tick: train_tokenizer(short, model=model, features=features.repeat(8, 1, 1), progress=tick)
        )
        probe = _call_seconds(lambda: train_probe(features, scenes.cells, steps=10)) / 10
        encoded = _call_seconds(lambda: self._encode(model, scenes.images)) / len(scenes)
        tokenized = _call_seconds(lambda: tokenize_and_decode(model, features)) / len(scenes)
        to_encode = max(config.train_scenes, config.probe_scenes) + config.test_scenes
        to_encode += min(MEASURED, config.train_scenes)
        self.estimates = {
            "scenes": 1e-4 * to_encode,
            "encoder": config.encoder_steps * encoder,
            "features": to_encode * encoded,
            "tokenizer": recipe.loop.steps * tokenizer,
            "evaluation": (config.test_scenes + config.probe_scenes) * tokenized + 2 * config.probe_steps * probe,
            "photographs": 1.0,
        }
        parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.estimates.items())
        self.say(f"about {duration(sum(self.estimates.values()))} in all: {parts}")

    @contextmanager
    def _stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Announce a stage, time it, and keep it for the report with the note that it gives."""
        self.say(f"{name}: about {duration(self.estimates[name])}")
        said: list[str] = []
        began = time.perf_counter()
        yield said.append
        seconds = time.perf_counter() - began
        self.stages.append(Stage(name, seconds, said[-1] if said else ""))
        self.say(f"  {said[-1] if said else 'done'}: {duration(seconds)}")

    def _say_row(self, label: str, key: str) -> Callable[[dict[str, Any]], None]:
        def progress(row: dict[str, Any]) -> None:
            parts = [f"step {row['step']}/{row['steps']}", f"loss {row['loss']:.3f}", f"{label} {row[key]:.3f}"]
            if "keep_rate" in row:
                parts.append(f"kept {row['keep_rate']:.2f}")
            if "codes_used" in row:
                parts.append(f"{row['codes_used']} codes used")
            parts.append(f"{row['images_per_second']:.0f} images/s")
            parts.append(f"{duration(row['eta_seconds'])} to go")
            self.say("  " + ", ".join(parts))

        return progress

    def _say_summary(self, numbers: dict[str, Any]) -> None:
        tokens = ", ".join(f"{mean:.1f} for {k}" for k, mean in numbers["tokens_by_objects"].items())
        probe = numbers["probe"]
        self.say(f"reconstruction cosine {numbers['cosine']:.3f}; {numbers['codes_used']} codes in use")
        self.say(f"tokens by number of objects: {tokens} (of {numbers['patches']} patches)")
        for row in probe:
            self.say(
                f"{row['what']}: {row['tokens']:.3f} read from the tokens, "
                f"{row['encoder']:.3f} from the encoder, {row['chance']:.3f} by chance"
            )
        self.say(f"{duration(numbers['seconds'])} in all. Report: {self.config.output / REPORT}")
        self.say(f"Now try: lavit tokenize IMAGE --model {shlex.quote(str(self.config.output / MODEL))} --map map.png")

    def _preset(self) -> LaVITTokenizerConfig:
        return LaVITTokenizerConfig.preset("small", **self.recipe.tokenizer)

    def _new_model(self) -> LaVITTokenizer:
        model = LaVITTokenizer(self._preset())
        return model if self.device.type == "cpu" else model.to(device=self.device)  # type: ignore[call-arg, arg-type]

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU ({platform.machine()})"


def _step_seconds(run: Callable[[Callable[[Any], None]], Any]) -> float:
    """Median time between two calls of what ``run`` is given to call after each step; the first interval, in which the
    machine warms up, is left out where there are more."""
    ticks: list[float] = []
    run(lambda row: ticks.append(time.perf_counter()))
    times = [after - before for before, after in zip(ticks[:-1], ticks[1:], strict=True)]
    return median(times[1:] or times)


def _call_seconds(step: Callable[[], Any], times: int = 4) -> float:
    """Median time of a call."""

    def repeat(tick: Callable[[Any], None]) -> None:
        for _ in range(times + 1):
            step()
            tick(None)

    return _step_seconds(repeat)


def summary(result: QuickstartResult) -> dict[str, Any]:
    """The numbers of a run without its pictures, ready for JSON."""
    return {
        "command": result.command,
        "seed": result.seed,
        "device": result.device,
        "threads": result.threads,
        "versions": result.versions,
        "seconds": round(result.seconds, 1),
        "stages": {stage.name: round(stage.seconds, 1) for stage in result.stages},
        "parameters": result.parameters,
        "patches": math.prod(result.grid),
        "cosine": fmean(result.cosines),
        "tokens": fmean(n for group in result.content.values() for n in group),
        "tokens_by_objects": {str(k): fmean(group) for k, group in result.content.items()},
        "codes_used": sum(n > 0 for n in result.code_counts),
        "codes": len(result.code_counts),
        "probe": [
            {"what": row.what, "tokens": row.tokens, "encoder": row.encoder, "chance": row.chance}
            for row in result.probe
        ],
        "photographs": [
            {"name": photo.name, "source": photo.source, "tokens": photo.tokens, "cosine": photo.cosine}
            for photo in result.photos
        ],
        "encoder_history": result.encoder_history,
        "history": result.history,
    }


def _versions() -> dict[str, str]:
    found = {"lavit": lavit.__version__, "python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _parameters(model: LaVITTokenizer) -> dict[str, int]:
    """Parameters of each part of the model, under the words that people use for it."""
    parts: dict[str, list[torch.nn.Module]] = {
        "encoder": [model.encoder],
        "selector": [model.token_predictor],
        "merger": [model.causal_encoder],
        "quantizer": [model.encode_task_layer, model.quantize],
        "decoder": [model.decoder],
    }
    return {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts.items()}


def _grid(model: LaVITTokenizer) -> tuple[int, int]:
    side = model.config.image_size // model.config.patch_size
    return side, side


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lavit quickstart",
        description="Train a small dynamic tokenizer here and now, tokenize real photographs with it, and write a "
        "report. Needs no data, network or GPU; takes minutes on two CPU cores.",
    )
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder to write [quickstart]")
    parser.add_argument("--seed", type=_seed, default=0, help="of the scenes, the weights and the noise [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--fast", action="store_true", help="a miniature run of seconds that learns next to nothing: does it work here?"
    )
    options = parser.parse_args(argv)
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: expected a folder, got the file {options.output}")
    make = QuickstartConfig.fast if options.fast else QuickstartConfig
    words = [] if argv is None else list(argv)
    disable_progress_bar()  # transformers would draw one for the single file that is saved
    run_quickstart(
        make(output=options.output, seed=options.seed, device=options.device),
        say=lambda line: print(line, flush=True),
        command=shlex.join(["lavit", "quickstart", *words]),
    )
    return 0


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {2**31 - 1}, got {text}")
    return value
