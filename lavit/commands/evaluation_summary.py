"""What `lavit evaluate` tells of a task: a line for each figure, and the sheet of its worst and best items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from lavit.evaluation.tasks import TaskReport

SIDE_BY_SIDE = {"generate": " (drawn, and the captioned image)", "reconstruct": " (the image, and from its tokens)"}
QUESTION_TYPES = 12  # VQAv2 has 65


def lines(name: str, report: TaskReport) -> Iterator[str]:
    """What is told of a task: a line for each figure, with what guessing scores."""
    score, count = report.score, len(report.results)
    yield f"{name}: {count} items" + (f", {len(report.skipped)} left out" if report.skipped else "")
    if score is None:
        yield "  not judged: the answers are not known"
    elif "figures" in score:  # of pixels
        yield from (f"  {figure:<28} {value:.4f}" for figure, value in score["figures"].items())
        if "use" in score:
            use = score["use"]
            yield f"  {'tokens an image':<28} {use['tokens']:.1f} ({use['fewest_tokens']} to {use['most_tokens']})"
            yield f"  {'codes used':<28} {use['codes_used']} of {use['codes']} (perplexity {use['perplexity']:.1f})"
        if score["blackened"]:
            yield f"  blackened by the safety checker, and counted so: {score['blackened']}"
        yield from _skipped(score["skipped"])
    elif "scores" in score:  # COCO's captions
        words = score["words"]
        yield _figure("exact", words["exact"], words["guessed_exact"]["value"])
        yield _figure("F1", words["f1"], words["guessed_f1"]["value"])
        yield from (f"  {metric:<10} {value:.4f}" for metric, value in score["scores"].items())
        for group, scores in score.get("by_domain", {}).items():
            yield f"  {group}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
        if score["scores"] and score["tokenizer"] == "plain":
            yield "  without Java's tokenizer: does not compare with published numbers"
        yield from _skipped(score["skipped"])
    elif "by_answer_type" in score:
        yield _share("all", score["overall"])
        yield from (_share(kind, share) for kind, share in score["by_answer_type"].items())
        yield from _question_types(score["by_question_type"])
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


def sheet(reports: Mapping[str, TaskReport], count: int) -> Image.Image | None:
    """The worst and the best items of each task; None where no task has items with a score of their own."""
    from lavit.report.sheet import draw_sheet, extremes

    sections = []
    for name, report in reports.items():
        if report.shown:
            worst, best = extremes(report.shown, count)
            beside = SIDE_BY_SIDE.get(name, "")
            sections += [(f"{name}: the worst of {len(report.shown)}{beside}", worst), (f"{name}: the best", best)]
    return draw_sheet(sections) if sections else None


def _skipped(reasons: Mapping[str, str]) -> Iterator[str]:
    for reason in dict.fromkeys(reasons.values()):
        yield f"  skipped: {', '.join(metric for metric, why in reasons.items() if why == reason)}: {reason}"


def _share(name: str, share: Mapping[str, Any]) -> str:
    return _figure(name, share["accuracy"], share["constant"])


def _question_types(shares: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Those of most questions, the most first."""
    by_number = sorted(shares.items(), key=lambda pair: -pair[1]["questions"])
    if by_number:
        yield "  by type of question:"
    yield from (f"  {_share(kind, share)}" for kind, share in by_number[:QUESTION_TYPES])
    if rest := by_number[QUESTION_TYPES:]:
        yield f"    and {len(rest)} types of fewer questions, all in the file of --output"


def _figure(name: str, value: float, guessed: float | None = None, of_true: float | None = None) -> str:
    beside = [] if guessed is None else [f"guessing: {guessed:.3f}"]
    beside += [] if of_true is None else [f"tokens of the true images: {of_true:.3f}"]
    return f"  {name:<10} {value:.3f}" + (f"  ({'; '.join(beside)})" if beside else "")
