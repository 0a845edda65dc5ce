"""``lavit evaluate``: what a model says about images and draws for prompts, judged."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lavit.commands import outputs
from lavit.commands.image_inputs import tell_skipped
from lavit.commands.model_folders import load_lavit
from lavit.commands.options import add_machine, check_at_least, command_parser, only_given, pick_device
from lavit.data.captioned_folder import CaptionedFolder, read_folder
from lavit.evaluation import tasks as evaluation
from lavit.evaluation.tasks import Model, TaskReport
from lavit.shapes.edits import edits
from lavit.shapes.world import SHAPES_WORLD, ShapesWorld
from lavit.training.engine import distributed

TASKS = ("caption", "vqa", "generate", "edit")
DRAWN = ("generate", "edit")
SCENES, PROBE_SCENES = 256, 4096

DESCRIPTION = """Judge a model that `lavit train language` left: its captions, its answers, and the images it draws.

--data shapes: scenes of the built-in world that no training has seen. Captions by what they say is where, answers by
kind of question, images drawn for captions (generate) and for a scene with words that ask for one change of it (edit)
by the objects that a probe reads from their decoded tokens; all beside what guessing scores, of an edit guessing that
looks at the scene and does not read the words.
--data FOLDER: images/ and captions.json (COCO captions or Karpathy's split), and for vqa questions.json and
answers.json (VQAv2's). Captions by the metrics of COCO captions as far as pycocoevalcap is installed, answers by the
standard accuracy; without answers.json they are only written. For images drawn there is nothing to judge by."""

EPILOG = """--output: "tasks", for each "score", "settings", "results" (an entry for each item, in the form of COCO's
and VQAv2's result files) and "skipped" (name and reason of each item left out); and "left_out", tasks that the model
cannot do, and what the folder's files have that cannot be used.
Under torchrun all processes share the work: torchrun --nproc-per-node 8 -m lavit.cli evaluate --model DIR --data FOLDER
An item that cannot be used is named and left out. Exit code 0; 1 if some were left out; 2 on an error, or if all were.
"""


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    outputs.check_file("--output", options.output)
    device = pick_device(options.device)
    folder = None
    if options.data != SHAPES_WORLD:
        folder = read_folder(options.data, split=options.split, texts=False, edits=False)
    tasks = _tasks(options.task, folder, options.data)
    model, processor = load_lavit(options.model, device)
    left_out = list(folder.bad) if folder is not None else []
    if model.config.image_objective != "classify":
        reason = "the model regresses embeddings, it has no image tokens to draw"
        left_out += [(f"task {task}", reason) for task in tasks if task in DRAWN]
        tasks = [task for task in tasks if task not in DRAWN]
    with distributed.process_group(device):
        if folder is None:
            reports = dict(_scenes(options, tasks, model, processor))
        else:
            reports = dict(_folder(options, tasks, folder, model, processor))
        first, processes = distributed.rank() == 0, distributed.world_size()
    if not first:
        return 0  # a code of its own would have torchrun end the first process, which still writes
    skipped = [(item.name, item.reason) for report in reports.values() for item in report.skipped]
    for name, reason in [*left_out, *skipped]:
        tell_skipped(name, reason)
    if options.output != "-":
        print("\n".join(line for name, report in reports.items() for line in lines(name, report)))
    if options.output:
        about = {name: getattr(options, name) for name in ("model", "data", "split", "limit", "seed")}
        found = {name: report.as_dict() for name, report in reports.items()}
        content = {**about, "processes": processes, "tasks": found, "left_out": left_out}
        outputs.write_text(options.output, json.dumps(content, indent=1) + "\n")
    return 1 if left_out or skipped else 0


def lines(name: str, report: TaskReport) -> Iterator[str]:
    """What is told of a task: a line for each figure, with what guessing scores."""
    score, count = report.score, len(report.results)
    yield f"{name}: {count} items" + (f", {len(report.skipped)} left out" if report.skipped else "")
    if score is None:
        yield "  not judged: the answers are not known"
    elif "scores" in score:  # COCO's captions
        yield from (f"  {metric:<10} {value:.4f}" for metric, value in score["scores"].items())
        for reason in dict.fromkeys(score["skipped"].values()):
            metrics = ", ".join(metric for metric, why in score["skipped"].items() if why == reason)
            yield f"  skipped: {metrics}: {reason}"
    elif "by_answer_type" in score:
        yield _figure("all", score["overall"]["accuracy"])
        yield from (_figure(kind, share["accuracy"]) for kind, share in score["by_answer_type"].items())
    elif "by_kind" in score:
        for kind, share in {"all": score["overall"], **score["by_kind"]}.items():
            yield _figure(kind, share["accuracy"], share["constant"])
    else:
        found = score["objects"]
        for figure in ("exact", "recall", "precision"):
            of_true = score["true_tokens"]["score"][figure] if "true_tokens" in score else None
            guessed = score["wordless"][figure] if "wordless" in score else found["constant"][figure]
            yield _figure(figure, found["score"][figure], guessed, of_true)
        if "tokens" in score:
            yield f"  tokens     {score['tokens']['drawn']:.1f} an image (true images: {score['tokens']['true']:.1f})"
        if "readable" in score:
            yield _figure("readable", score["readable"])


def _figure(name: str, value: float, guessed: float | None = None, of_true: float | None = None) -> str:
    beside = [] if guessed is None else [f"guessing: {guessed:.3f}"]
    beside += [] if of_true is None else [f"tokens of the true images: {of_true:.3f}"]
    return f"  {name:<10} {value:.3f}" + (f"  ({'; '.join(beside)})" if beside else "")


def _scenes(
    options: argparse.Namespace, tasks: Sequence[str], model: Model, processor: Any
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
        shared["progress"] = _progress(task)
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
    options: argparse.Namespace, tasks: Sequence[str], folder: CaptionedFolder, model: Model, processor: Any
) -> Iterator[tuple[str, TaskReport]]:
    judge: dict[str, Any] = {"caption": evaluation.caption_folder, "vqa": evaluation.answer_folder}
    items: dict[str, Sequence[Any]] = {"caption": folder.captions, "vqa": folder.questions}
    for task in tasks:
        chosen = items[task][: options.limit]
        shared = {"batch_size": options.batch_size, "progress": _progress(task)}
        yield task, judge[task](model, processor, chosen, **shared, **_text_settings(options))


def _text_settings(options: argparse.Namespace) -> dict[str, Any]:
    return only_given(num_beams=options.beams, min_new=options.min_new, max_new=options.max_new)


def _tasks(wanted: Sequence[str] | None, folder: CaptionedFolder | None, data: str) -> list[str]:
    """What is asked for, or else everything that the data can be used for; checked before any work."""
    if folder is None:
        return list(dict.fromkeys(wanted or TASKS))
    there = {"caption": bool(folder.captions), "vqa": bool(folder.questions), "generate": False, "edit": False}
    lacks = {
        "caption": f"{data} has no captions that can be used",
        "vqa": f"{data} has no questions that can be used (questions.json)",
        **dict.fromkeys(DRAWN, "images drawn are judged in the shapes world only (--data shapes)"),
    }
    for task in wanted or ():
        if not there[task]:
            raise ValueError(f"--task {task}: {lacks[task]}{_first_bad(folder)}")
    tasks = list(dict.fromkeys(wanted or [task for task in TASKS if there[task]]))
    if not tasks:
        raise ValueError(f"--data: {lacks['caption']}{_first_bad(folder)}")
    return tasks


def _first_bad(folder: CaptionedFolder) -> str:
    return f"; {len(folder.bad)} entries left out, {': '.join(folder.bad[0])}" if folder.bad else ""


def _progress(task: str) -> evaluation.Progress:
    """Says every tenth of the way, on the first process."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if distributed.rank() == 0 and 10 * done // total > told:
            told = 10 * done // total
            print(f"{task}: {done} of {total}", file=sys.stderr, flush=True)

    return tell


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("evaluate", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add("--model", metavar="DIR", help="folder of a model, as `lavit train language` writes it")
    add("--data", metavar="D", help="shapes, or a folder of images with captions and questions")
    add("--task", action="append", choices=TASKS, help="what to judge, once or more; else all that the data allows")
    add("--output", metavar="F", help="write figures and all results to this file (JSON); - for the standard output")
    add("--split", metavar="S", help="of Karpathy's captions: train, restval, val or test; else all")
    add("--limit", type=int, metavar="N", help=f"at most N images (vqa of a folder: questions); scenes: [{SCENES}]")
    add("--beams", type=int, metavar="N", help="of the search; else the release's, 2 for captions and 5 for answers")
    add("--min-new", type=int, metavar="N", help="fewest tokens of a text; else the release's, 8 and 2; scenes: 1")
    add("--max-new", type=int, metavar="N", help="most tokens of a text; else the release's, 36 and 10")
    add(
        "--guidance",
        type=float,
        metavar="G",
        help="of images drawn; else the model's own, or the release's: 4, and 5 with an image",
    )
    add("--top-k", type=int, metavar="K", help="likeliest codes; else the model's own, or the release's: 50")
    add(
        "--probe-scenes",
        type=int,
        default=PROBE_SCENES,
        metavar="N",
        help=f"that the probe learns from [{PROBE_SCENES}]",
    )
    add("--seed", type=int, default=0, metavar="S", help="of the scenes and the images drawn [0]")
    add_machine(parser, 32, "items at a time on each process")
    options = parser.parse_args(argv)
    for name in ("model", "data"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is needed; `lavit evaluate --help` tells what it is")
    check_at_least(options, limit=1, batch_size=1, probe_scenes=1)
    if options.data == SHAPES_WORLD and options.split is not None:
        raise ValueError(f"--split: the shapes world has none, got {options.split}")
    return options
