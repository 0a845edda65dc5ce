"""The stages of the quickstart in their order, and what is said before and after each."""

from __future__ import annotations

import json
import platform
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import lavit
from lavit import report
from lavit.data import DataStream, load_image
from lavit.data.atomic_write import atomic_write
from lavit.data.photographs import find_photographs
from lavit.evaluation import chance, tokenize_and_decode, tokens_by_objects, train_probe
from lavit.kernels import dispatch
from lavit.quickstart import language, pixels
from lavit.quickstart.config import QuickstartConfig
from lavit.quickstart.language import HeldOut
from lavit.quickstart.summary_text import summary, summary_lines
from lavit.quickstart.timing import call_seconds, count_parameters, step_seconds
from lavit.report import LanguageResult, Photo, PixelsResult, ProbeRow, QuickstartResult, Scene, Stage
from lavit.report.token_map import shrink
from lavit.shapes.edits import edits
from lavit.shapes.world import Scenes, ShapesWorld, caption
from lavit.tokenizer import LaVITImageProcessor, LaVITTokenizer, LaVITTokenizerConfig
from lavit.tokenizer.processing import encode_images
from lavit.training.engine import stage
from lavit.training.engine.distributed import pick_device
from lavit.training.engine.metrics import duration
from lavit.training.language.data import ImageStore, edited_scenes
from lavit.training.language.train import train_language
from lavit.training.pixels.recipe import PixelsTrainingConfig
from lavit.training.tokenizer.initialization import MEASURED, measure_features
from lavit.training.tokenizer.pretrain_encoder import pretrain_encoder
from lavit.training.tokenizer.recipe import TokenizerTrainingConfig
from lavit.training.tokenizer.train import save_model, train_tokenizer

REPORT, FIGURE, RESULTS, SCENE = "report.html", "figure.png", "results.json", "scene.png"
TOKENIZER, MODEL, PIXELS = "tokenizer", "model", "pixels"
PHOTO_SIDE = 512
SAID = {
    "loss": "loss {:.3f}",
    "accuracy": "objects named {:.3f}",
    "reconstruction_loss": "reconstruction {:.3f}",
    "text_loss": "words {:.3f}",
    "image_loss": "codes {:.3f}",
    "keep_rate": "kept {:.2f}",
    "codes_used": "{} codes used",
    "images_per_second": "{:.0f} images/s",
    "tokens_per_second": "{:.0f} tokens/s",
}
"""What is said of a row of metrics, of any stage."""


def run_quickstart(
    config: QuickstartConfig, *, say: Callable[[str], None] = print, command: str = "lavit quickstart"
) -> QuickstartResult:
    """Do it all and write the report, the numbers and the models into ``config.output``, which is made if need be.

    ``say`` gets a line of text now and then. The result depends on the seed and the device, and with several threads on
    the order of their sums, which is chance; the caller's random generators are left as they were.
    Raises ValueError, before anything is written, for a device that is not there and settings that do not fit.
    """
    device = pick_device(config.device)
    run = _Quickstart(config, device, say)
    config.output.mkdir(parents=True, exist_ok=True)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        return run.run(command)


class _Quickstart:
    """The stages in their order. What they share: the recipes, the clock, and the estimates of what is to come."""

    def __init__(self, config: QuickstartConfig, device: torch.device, say: Callable[[str], None]) -> None:
        self.config, self.device, self.say = config, device, say
        shared = config.shared(device)
        self.recipe = TokenizerTrainingConfig.recipe("small", {**config.recipe, **shared})
        self.recipe.tokenizer = {**self.recipe.tokenizer, "length": config.length}
        self.language_recipe = language.recipe_of(config, device)
        self.pixels_recipe = PixelsTrainingConfig.recipe("small", {**config.pixels_recipe, **shared})
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
                progress=self._say_row,
            )
            note(f"{config.encoder_steps} steps: draw every patch again and name what it shows; then frozen")

        with self._stage("features") as note:
            seen = DataStream(train.images[:MEASURED], 256, transform=self.processor, shuffle=False, epochs=1)
            measure_features(model, seen)
            features = encode_images(model, self.processor, train.images)
            held_out = encode_images(model, self.processor, test.images)
            changed = features[:0]
            if self._edits:
                changed = encode_images(model, self.processor, edited_scenes(self.language_recipe, train).after.images)
            note("the frozen encoder's features of all scenes, computed once")

        with self._stage("tokenizer") as note:
            trained = train_tokenizer(
                self.recipe,
                model=model,
                features=features[: config.train_scenes],
                progress=self._say_row,
            )
            save_model(model, self.processor, config.output / TOKENIZER)
            note(f"{self.recipe.loop.steps} steps of {self.recipe.loop.batch_size} scenes; saved in {TOKENIZER}/")

        with self._stage("evaluation") as note:
            judged, probe_rows = self._judge(model, features[: config.probe_scenes], held_out, train, test)
            scenes = self._scenes(judged)
            note("tokens of held-out scenes, decoded and put before small classifiers")

        with self._stage("photographs") as note:
            photos = self._photographs(model)
            note(f"{len(photos)} real photographs, made as small as the scenes")

        spoken = painted = None
        written: dict[str, list[list[int]]] = {}
        if config.language:
            spoken, written = self._speak(model, torch.cat([features[: config.train_scenes], changed]), judged)
        if config.pixels:
            painted = self._paint(model, features, written, train, test)

        side = model.config.image_size // model.config.patch_size
        result = QuickstartResult(
            command=command,
            seconds=time.perf_counter() - began,
            device=self._device_name(),
            threads=torch.get_num_threads(),
            seed=config.seed,
            versions=_versions(),
            model_path=str(config.output / TOKENIZER),
            parameters=count_parameters(
                {
                    "encoder": [model.encoder],
                    "selector": [model.token_predictor],
                    "merger": [model.causal_encoder],
                    "quantizer": [model.encode_task_layer, model.quantize],
                    "decoder": [model.decoder],
                }
            ),
            stages=self.stages,
            encoder_history=encoder_history,
            history=trained.history,
            scenes=scenes,
            photos=photos,
            content=tokens_by_objects(test.objects, judged.own.tokens),
            code_counts=judged.own.code_counts.tolist(),
            cosines=judged.own.cosines.tolist(),
            probe=probe_rows,
            kernels=dispatch.table(self.device.type),
            grid=(side, side),
            length=config.length,
            language=spoken,
            pixels=painted,
        )
        report.write_report(result, config.output / REPORT)
        report.write_figure(result, config.output / FIGURE)
        Image.fromarray(test.images[0]).save(config.output / SCENE)
        with atomic_write(config.output / RESULTS, "w") as file:
            file.write(json.dumps(summary(result), indent=2) + "\n")
        self._say_summary(result)
        return result

    # Stages.

    def _judge(
        self, model: LaVITTokenizer, features: Tensor, held_out: Tensor, train: Scenes, test: Scenes
    ) -> tuple[HeldOut, list[ProbeRow]]:
        """features, held_out: of the scenes that the probes learn from, and of ``test``."""
        config, known = self.config, train.cells[: self.config.probe_scenes]
        statistics = tokenize_and_decode(model, held_out)
        learned_from = tokenize_and_decode(model, features).decoded
        from_tokens = train_probe(learned_from, known, steps=config.probe_steps, seed=config.seed)
        from_encoder = train_probe(features, known, steps=config.probe_steps, seed=config.seed)
        tokens = from_tokens.score(statistics.decoded, test.cells)
        encoder = from_encoder.score(held_out, test.cells)
        blind = chance(known, test.cells)
        rows = [
            ProbeRow("Scenes with all four cells right", tokens.scene, encoder.scene, blind.scene),
            ProbeRow("Cells: shape and colour, or nothing", tokens.cell, encoder.cell, blind.cell),
        ]
        return HeldOut(ShapesWorld(config.seed, "test"), test, statistics, from_tokens, known), rows

    def _scenes(self, judged: HeldOut) -> list[Scene]:
        test, statistics = judged.scenes, judged.own
        count = min(self.config.shown_scenes, len(test))
        read = judged.probe.read(statistics.decoded[:count]).tolist()
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
        own = tokenize_and_decode(model, features)
        numbers = zip(own.keep, own.tokens.tolist(), own.cosines.tolist(), strict=True)
        return [
            Photo(one.name, one.source, np.asarray(shrink(picture, PHOTO_SIDE)), *its)
            for one, picture, its in zip(found, pictures, numbers, strict=True)
        ]

    def _speak(
        self, tokenizer: LaVITTokenizer, features: Tensor, judged: HeldOut
    ) -> tuple[LanguageResult, dict[str, list[list[int]]]]:
        """Stage 2 on the features of the scenes and of the changed ones: trained, saved with the tokenizer as one
        model, judged. Also returns the tokens drawn, as `language.judge` does."""
        config, recipe = self.config, self.language_recipe
        with self._stage("language") as note:
            store = ImageStore(tokenizer, features)
            learned = train_language(
                recipe, tokenizer=tokenizer, processor=self.processor, store=store, progress=self._say_row
            )
            stage.save_model(config.output / MODEL, learned.model, learned.processor)
            note(f"{recipe.loop.steps} steps of about {recipe.token_budget} tokens; the whole model is in {MODEL}/")
        with self._stage("reading and writing") as note:
            count = min(config.language_scenes, len(judged.scenes))
            held_out = judged.scenes[:count]
            result, written = language.judge(
                learned,
                replace(judged, scenes=held_out),
                seed=config.seed,
                shown=config.shown_scenes,
                say=lambda line: self.say(f"  {line}"),
                pairs=edits(judged.world, count, scenes=held_out) if self._edits else None,
            )
            asked = "captions, answers, images and changes asked for" if self._edits else "captions, answers and images"
            note(f"{asked}, of {count} held-out scenes")
        result.settings = {"training": language.training_settings(recipe), **result.settings}
        result.seconds = {"training": self.stages[-2].seconds, "judging": self.stages[-1].seconds}
        result.model_path = str(config.output / MODEL)
        return result, written

    def _paint(
        self,
        tokenizer: LaVITTokenizer,
        features: Tensor,
        written: dict[str, list[list[int]]],
        train: Scenes,
        test: Scenes,
    ) -> PixelsResult:
        """Stage 3 on the same features: trained, saved in the whole model's folder where there is one, judged."""
        config, recipe = self.config, self.pixels_recipe
        folder = config.output / MODEL / PIXELS if config.language else config.output / PIXELS
        with self._stage("pixels") as note:
            trained = pixels.learn(recipe, tokenizer, self.processor, train.images, features, self._say_row)
            trained.pipeline.save_pretrained(folder)
            where = folder.relative_to(config.output)
            note(f"{recipe.loop.steps} steps of {recipe.loop.batch_size} scenes; saved in {where}/")
        with self._stage("painting") as note:
            count = config.painted_scenes
            held_out = test[:count]
            result = pixels.judge(
                trained,
                held_out,
                written,
                pairs=edits(ShapesWorld(config.seed, "test"), count, scenes=held_out) if self._edits else None,
                seed=config.seed,
                shown=config.shown_scenes,
                say=lambda line: self.say(f"  {line}"),
            )
            note(f"{count} held-out scenes painted, each from: {'; '.join(result.ways)}")
        result.seconds = {"training": self.stages[-2].seconds, "judging": self.stages[-1].seconds}
        result.model_path = str(folder)
        return result

    # What is said, and how long it will take.

    def _plan(self) -> None:
        """Time a few steps of everything on a throw-away model, and say what will take how long."""
        config, recipe = self.config, self.recipe
        model, scenes = self._new_model(), ShapesWorld(config.seed).scenes(64)
        features = encode_images(model, self.processor, scenes.images)
        few_scenes = (self.processor, scenes, features)
        few: dict[str, Any] = {"steps": 8, "log_every": 1}
        encoder = step_seconds(
            lambda tick: pretrain_encoder(model, batch_size=config.encoder_batch, progress=tick, **few)
        )
        short = replace(recipe, first_phase=0.0, codebook="keep", loop=replace(recipe.loop, **few))
        tokenizer = step_seconds(
            lambda tick: train_tokenizer(short, model=model, features=features.repeat(8, 1, 1), progress=tick)
        )
        probe = call_seconds(lambda: train_probe(features, scenes.cells, steps=10)) / 10
        encoded = call_seconds(lambda: encode_images(model, self.processor, scenes.images)) / len(scenes)
        tokenized = call_seconds(lambda: tokenize_and_decode(model, features)) / len(scenes)
        to_encode = max(config.train_scenes, config.probe_scenes) + config.test_scenes
        to_encode += min(MEASURED, config.train_scenes) + (self.language_recipe.edited if config.language else 0)
        self.estimates = {
            "scenes": 1e-4 * to_encode,
            "encoder": config.encoder_steps * encoder,
            "features": to_encode * encoded,
            "tokenizer": recipe.loop.steps * tokenizer,
            "evaluation": (config.test_scenes + config.probe_scenes) * tokenized + 2 * config.probe_steps * probe,
            "photographs": 1.0,
        }
        if config.language:
            self.estimates |= language.estimates(config, self.language_recipe, self._new_model().eval(), *few_scenes)
        if config.pixels:
            times = 4 if self._edits else 2 if config.language else 1
            self.estimates |= pixels.estimates(config, self.pixels_recipe, self._new_model().eval(), *few_scenes, times)
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

    def _say_row(self, row: dict[str, Any]) -> None:
        parts = [form.format(row[key]) for key, form in SAID.items() if key in row]
        self.say(f"  step {row['step']}/{row['steps']}, {', '.join(parts)}, {duration(row['eta_seconds'])} to go")

    def _say_summary(self, result: QuickstartResult) -> None:
        for line in summary_lines(result):
            self.say(line)
        self.say(f"{duration(result.seconds)} in all. Report: {self.config.output / REPORT}")
        self.say(f"Now try: lavit tokenize IMAGE --model {self._folder(TOKENIZER)} --map map.png")
        if result.language:
            self.say(f"And:     lavit evaluate --model {self._folder(MODEL)} --data shapes --seed {result.seed}")
        if result.language and result.pixels:
            words = '"a red square top left and a blue circle bottom right"'
            self.say(f"And:     lavit generate {words} --model {self._folder(MODEL)} --out drawn.png")
            if self._edits:
                words = edits(ShapesWorld(result.seed, "test"), 1).texts[0]
                asked = f'{self._folder(SCENE)} "{words}"'
                self.say(f"And:     lavit generate {asked} --model {self._folder(MODEL)} --out changed.png")

    @property
    def _edits(self) -> bool:
        """Whether the language stage learns [image, text, image]."""
        return self.config.language and self.language_recipe.mixture.edit > 0

    def _folder(self, name: str) -> str:
        return shlex.quote(str(self.config.output / name))

    def _preset(self) -> LaVITTokenizerConfig:
        return LaVITTokenizerConfig.preset("small", **self.recipe.tokenizer)

    def _new_model(self) -> LaVITTokenizer:
        return torch.nn.Module.to(LaVITTokenizer(self._preset()), self.device)

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU ({platform.machine()})"


def _versions() -> dict[str, str]:
    found = {"lavit": lavit.__version__, "python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
