"""The work of ``lavit evaluate``, when its words are right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lavit import __version__
from lavit.commands import evaluation_pixels as of_pixels
from lavit.commands import outputs
from lavit.commands.evaluation_options import DRAWN, PIXELS, SCENE_TASKS
from lavit.commands.evaluation_summary import lines, sheet
from lavit.commands.image_inputs import tell_skipped
from lavit.commands.model_folders import load_lavit, pixels_folder, prepare_encoder
from lavit.commands.options import only_given, pick_device
from lavit.commands.progress import tenths
from lavit.data.annotation_entries import count_reasons, first_and_reasons
from lavit.data.image_folder import ImageFolder
from lavit.evaluation import tasks as evaluation
from lavit.evaluation.data_folder import ANNOTATIONS, DataFolder, fingerprint, read_data
from lavit.evaluation.journal import Journal
from lavit.evaluation.tasks import Model, TaskReport
from lavit.shapes.edits import edits
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.training.engine import distributed

SCENES = 256
TOLD = 50  # names of what is left out; a data set may lack a folder of ten thousand
# What results do not depend on, but for rounding.
ELSEWHERE = frozenset(
    "model pixels data images captions questions answers output restart sheet sheet_items batch_size device compile "
    "statistics inception resize clip".split()
)


def run(options: argparse.Namespace) -> int:
    outputs.check_file("--output", options.output)
    if options.sheet is not None:
        outputs.check_picture("--sheet", options.sheet)
        outputs.check_file("--sheet", options.sheet)
    device = pick_device(options.device)
    folder = None
    if options.data != SHAPES_WORLD:
        given = {name: getattr(options, name) for name in ("images", "captions", "questions", "answers", "split")}
        folder = read_data(options.data, **given)
        _check_outputs(options, folder)
    _check_model_kept(options)
    tasks = _tasks(options.task, folder, options.data)
    if options.lemmatize:
        lemmatizer()  # what is missing for it is told before the work
    place = None
    if folder is not None and set(tasks) & set(PIXELS):
        place = pixels_folder(options.model, options.pixels)
        _check_pictures(options, folder)
    model: Any = None
    processor: Any = None
    left_out = list(folder.bad) if folder is not None else []
    if set(tasks) - {"reconstruct"}:
        model, processor = load_lavit(options.model, device)
        prepare_encoder(model.visual_tokenizer, options, options.batch_size)
        if model.config.image_objective != "classify":
            reason = "the model regresses embeddings, it has no image tokens to draw"
            left_out += [(f"task {task}", reason) for task in tasks if task in DRAWN]
            tasks = [task for task in tasks if task not in DRAWN]
    drawing = None
    if place is not None and set(tasks) & set(PIXELS):
        drawing = of_pixels.load_judges(options, tasks, device), of_pixels.load_pipeline(place, device, options)
        if "reconstruct" in tasks:
            prepare_encoder(drawing[1].tokenizer, options, options.batch_size)
    with distributed.process_group(device):
        lacking = sorted(set(drawing[0].lacking) - {"FID"}) if drawing else []  # what is judged item by item
        journal = _journal(options, tasks, folder, place, lacking)
        if folder is None:
            reports = dict(_scenes(options, tasks, model, processor, journal))
        else:
            reports = {}
            for task, report, lost in _folder(options, tasks, folder, model, processor, drawing, journal):
                reports[task] = report
                left_out += lost
        first, processes = distributed.rank() == 0, distributed.world_size()
    if not first:
        return 0  # a code of its own would have torchrun end the first process, which still writes
    skipped = [(item.name, item.reason) for report in reports.values() for item in report.skipped]
    _tell_left_out([*left_out, *skipped], options.output)
    if options.output != "-":
        print("\n".join(line for name, report in reports.items() for line in lines(name, report)))
    if options.output:
        about = {name: getattr(options, name) for name in ("model", "data", "split", "limit", "seed")}
        found = {name: report.as_dict() for name, report in reports.items()}
        content = {**about, "processes": processes, "tasks": found, "left_out": left_out}
        outputs.write_text(options.output, json.dumps(content, indent=1) + "\n")
    if options.sheet is not None:
        _write_sheet(options, reports)
    if journal is not None:
        journal.finish()
    return 1 if left_out or skipped else 0


def _tell_left_out(left_out: Sequence[tuple[str, str]], output: str | None) -> None:
    for name, reason in left_out[:TOLD]:
        tell_skipped(name, reason)
    if left_out:
        rest = f", {TOLD} of them told here" + (f", all in {output}" if output else "") if left_out[TOLD:] else ""
        print(f"lavit: {len(left_out)} left out{rest}", file=sys.stderr)
    if left_out[1:]:
        print(f"lavit: {count_reasons(left_out)}", file=sys.stderr)


def _check_outputs(options: argparse.Namespace, folder: DataFolder) -> None:
    """ValueError where an output would take the place of what is read, or be read as an image the next time."""
    given = (options.captions, options.questions, options.answers, options.statistics)
    files = [*(path for path in given if path), *(Path(options.data, name) for name in ANNOTATIONS)]
    for option, target in (("--output", options.output), ("--sheet", options.sheet)):
        if target not in (None, "-"):
            outputs.check_not_read(option, [target], files, "one of the files")
            for items in (folder.captions, folder.questions):
                outputs.check_not_read(option, [target], [item.image for item in items])
    sheet = options.sheet
    if sheet and not folder.annotated and Path(sheet).resolve().is_relative_to(folder.images.resolve()):
        raise ValueError(f"--sheet: {sheet} is among the images that are read")


def _check_model_kept(options: argparse.Namespace) -> None:
    """ValueError where an output would take the place of a file of a model. An earlier result is none."""
    for option, target in (("--output", options.output), ("--sheet", options.sheet)):
        path = Path(target or "-")
        for folder in filter(None, (options.model, options.pixels)):
            if path.is_file() and path.resolve().is_relative_to(Path(folder).resolve()) and not _own_result(path):
                raise ValueError(f"{option}: {target} is in the folder of a model, and would be overwritten")


def _own_result(path: Path) -> bool:
    try:
        return path.suffix in outputs.PICTURES or "tasks" in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        return False


def _check_pictures(options: argparse.Namespace, folder: DataFolder) -> None:
    """ValueError where the images drawn would be lost before they are shown, or taken for images of the folder."""
    if options.output in (None, "-"):
        if options.sheet is not None:
            raise ValueError("--sheet: of images drawn needs --output F, beside which they are kept")
    elif not folder.captions and Path(options.output).resolve().is_relative_to(folder.images.resolve()):
        raise ValueError(f"--output: {options.output} is among the images that are read; images are drawn beside it")


def _write_sheet(options: argparse.Namespace, reports: Mapping[str, TaskReport]) -> None:
    drawn = sheet(reports, options.sheet_items)
    if drawn is None:
        print("lavit: no sheet: no item has a score of its own here", file=sys.stderr)
    else:
        outputs.write_picture(drawn, options.sheet)


def _scenes(
    options: argparse.Namespace, tasks: Sequence[str], model: Model, processor: Any, journal: Journal | None
) -> Iterator[tuple[str, TaskReport]]:
    world = ShapesWorld(options.seed, "test")
    scenes = world.scenes(options.limit or SCENES)
    shared: dict[str, Any] = {"batch_size": options.batch_size}
    chosen = only_given(guidance=options.guidance, top_k=options.top_k)
    probe = None
    if set(tasks) & set(DRAWN):
        known = ShapesWorld(options.seed).scenes(options.probe_scenes)
        probe = evaluation.decoded_probe(model, processor, known, seed=options.seed)
    for task in tasks:
        shared |= {"progress": _progress(task), "kept": journal.task(task) if journal else None}
        if task == "caption":
            yield task, evaluation.caption_scenes(model, processor, scenes, **shared, **_text_settings(options))
        elif task == "vqa":
            yield task, evaluation.answer_scenes(model, processor, world, scenes, **shared, **_text_settings(options))
        else:
            assert probe is not None
            draw: Any = evaluation.generate_scenes if task == "generate" else evaluation.edit_scenes
            asked = scenes if task == "generate" else edits(world, len(scenes))
            yield task, draw(model, processor, asked, probe, seed=options.seed, **shared, **chosen)


def _folder(
    options: argparse.Namespace,
    tasks: Sequence[str],
    folder: DataFolder,
    model: Any,
    processor: Any,
    drawing: Any,
    journal: Journal | None,
) -> Iterator[tuple[str, TaskReport, list[tuple[str, str]]]]:
    """Each task with its report, and what else was left out."""
    judge: dict[str, Any] = {"caption": evaluation.caption_folder, "vqa": evaluation.answer_folder}
    items: dict[str, Sequence[Any]] = {"caption": folder.captions, "vqa": folder.questions}
    for task in tasks:
        if task in judge:
            kept = journal.task(task) if journal else None
            shared = {"batch_size": options.batch_size, "progress": _progress(task), "kept": kept}
            more: dict[str, Any] = {}
            if task == "vqa":
                more = {"answerable_first": folder.vizwiz, "lemmatize": lemmatizer() if options.lemmatize else None}
            chosen = items[task][: options.limit]
            yield task, judge[task](model, processor, chosen, **shared, **more, **_text_settings(options)), []
            continue
        judges, pipeline = drawing
        with of_pixels.pictures_folder(options.output, task) as pictures:
            own = (judges, pictures, journal, _progress(task))
            if task == "reconstruct":
                yield task, of_pixels.reconstruct(options, folder, pipeline, *own), []
            else:
                yield task, *of_pixels.generate(options, folder, model, processor, pipeline, *own)


@cache
def lemmatizer() -> Any:
    """The release's. ImportError naming what is to be installed for it."""
    from lavit.language.postprocessing import spacy_lemmatizer

    return spacy_lemmatizer()


def _text_settings(options: argparse.Namespace) -> dict[str, Any]:
    return only_given(num_beams=options.beams, min_new=options.min_new, max_new=options.max_new)


def _journal(
    options: argparse.Namespace, tasks: Sequence[str], folder: DataFolder | None, place: str | None, lacking: list[str]
) -> Journal | None:
    """Beside the output: what is done before an interruption is not done again. Not without an output."""
    if options.output in (None, "-"):
        return None
    settings: dict[str, Any] = {name: value for name, value in vars(options).items() if name not in ELSEWHERE}
    settings |= {"lavit": __version__, "task": list(tasks), "lacking": lacking}
    for name, used in (("model", options.model), ("pixels", place), ("clip", options.clip)):
        settings[name] = _of_files(used, options)
    if folder is not None:
        asked: dict[str, Sequence[Any]] = {"caption": folder.captions, "vqa": folder.questions}
        asked |= {"generate": folder.captions}
        settings["data"] = {
            task: fingerprint(asked[task] if task in asked else folder.pictures(), folder.images) for task in tasks
        }
    return Journal(f"{options.output}.progress", settings, restart=options.restart)


def _of_files(folder: str | None, options: argparse.Namespace) -> list[list[Any]] | None:
    """Names, sizes and times of the files below a folder: of several gigabytes of weights, enough to tell another. What
    an evaluation itself writes there does not count."""
    if folder is None:
        return None
    written = (options.output, f"{options.output}.progress", f"{options.output}.pictures")
    own = {Path(name).resolve() for name in (*written, options.sheet, options.statistics) if name is not None}
    files = sorted(path for path in Path(folder).resolve().rglob("*") if path.is_file())
    files = [path for path in files if own.isdisjoint((path, *path.parents))]
    folder = str(Path(folder).resolve())
    return [[path.relative_to(folder).as_posix(), *_size_and_time(path)] for path in files]


def _size_and_time(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def _tasks(wanted: Sequence[str] | None, folder: DataFolder | None, data: str) -> list[str]:
    """What is asked for, or else everything that the data can be used for, but for what draws pixels of annotated
    images, which takes long; checked before any work."""
    if folder is None:
        if "reconstruct" in (wanted or ()):
            raise ValueError("--task reconstruct: images of a folder are reconstructed (--data FOLDER)")
        return list(dict.fromkeys(wanted or SCENE_TASKS))
    captioned = any(item.captions for item in folder.captions)
    there = {"caption": bool(folder.captions), "vqa": bool(folder.questions), "generate": captioned, "edit": False}
    there["reconstruct"] = bool(folder.captions) or _any_image(folder)
    lacks = {
        "caption": f"{data} has no captions that can be used",
        "vqa": f"{data} has no questions that can be used (questions.json)",
        "generate": f"{data} has no captions that can be used, which ask for images",
        "edit": "edits are judged in the shapes world only (--data shapes)",
        "reconstruct": f"there is no folder {folder.images} with images, or no image in it",
    }
    for task in wanted or ():
        if not there[task]:
            raise ValueError(f"--task {task}: {lacks[task]}{_why(folder, task)}")
    tasks = list(dict.fromkeys(wanted or [task for task in ("caption", "vqa") if there[task]]))
    if not tasks and not folder.annotated and there["reconstruct"]:
        tasks = ["reconstruct"]
    if not tasks:
        annotated = "vqa" if folder.bad_questions and not folder.bad_captions else "caption"
        lacking = annotated if folder.annotated else "reconstruct"
        raise ValueError(f"--data: {lacks[lacking]}{_why(folder, None)}")
    return tasks


def _any_image(folder: DataFolder) -> bool:
    try:
        return bool(ImageFolder(folder.images))
    except (ValueError, OSError):
        return False


def _why(folder: DataFolder, task: str | None) -> str:
    """What is wrong with the entries of a task's file; None: of all."""
    bad = folder.bad if task is None else folder.bad_questions if task == "vqa" else folder.bad_captions
    return f"; {len(bad)} entries left out, {first_and_reasons(bad)}" if bad else ""


def _progress(task: str) -> evaluation.Progress:
    return tenths(task, end=True, silent=distributed.rank() != 0)
