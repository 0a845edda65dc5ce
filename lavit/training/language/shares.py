"""Which share each kind of sample has in the mixture of a folder, and how often a run shows each sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lavit.data.captioned_folder import CaptionedFolder, usual_answer
from lavit.data.mixture import Mixture, Source
from lavit.kernels.bin_pack import bin_pack
from lavit.training.engine import distributed
from lavit.training.language.recipe import LanguageTrainingConfig, MixtureConfig

logger = logging.getLogger(__name__)

CAPTIONS, QUESTIONS, EDITS = "captions", "questions.json with answers.json", "edits.jsonl"
TEXTS = "text.jsonl, and there is no --text FILE"
FILES = {
    "caption": CAPTIONS,
    "image": CAPTIONS,
    "unprompted": CAPTIONS,
    "question": QUESTIONS,
    "edit": EDITS,
    "text": TEXTS,
}
"""What holds the samples of a kind."""


def images_of(folder: CaptionedFolder) -> dict[str, int]:
    """How many images have samples of each kind; of texts alone how many there are, at most the images of a kind."""
    asked = [item.image for item in folder.questions if usual_answer(item.answers)] if folder.answered else []
    found = {
        CAPTIONS: len({item.image for item in folder.captions if item.captions}),
        QUESTIONS: len(set(asked)),
        EDITS: len({item.result for item in folder.edits}),
    }
    found[TEXTS] = min(len(folder.texts), max(1, *found.values()))
    return {kind: found[file] for kind, file in FILES.items()}


def shares_of(mixture: MixtureConfig, folder: CaptionedFolder) -> dict[str, float]:
    """The share of each kind, by the settings; where these follow the data, times the part of the images that have such
    samples, so that every image weighs alike and what there is not has no share.

    Raises ValueError where a share was given by hand to what the folder lacks, or nothing is left.
    """
    there, shares = images_of(folder), mixture.shares
    lacking = [name for name, share in shares.items() if share > 0 and not there[name]]
    if lacking and not (mixture.follow and set(lacking) < {name for name, share in shares.items() if share > 0}):
        left_out = f"; {len(folder.bad)} entries cannot be used, {': '.join(folder.bad[0])}" if folder.bad else ""
        wanted = "; ".join(
            f"mixture.{name}: expected 0, got {shares[name]}: {folder.root} has no {FILES[name]}" for name in lacking
        )
        raise ValueError(wanted + left_out)
    if not mixture.follow:
        return shares
    most = max(there.values())
    found = {name: share * there[name] / most for name, share in shares.items()}
    told = ", ".join(f"{name} {share / sum(found.values()):.2f}" for name, share in found.items() if share > 0)
    logger.info("mixture by what %s holds: %s", folder.root, told)
    for file in dict.fromkeys(FILES[name] for name in lacking):
        logger.info("  no %s there: %s 0", file, ", ".join(name for name in lacking if FILES[name] == file))
    for name, share in shares.items():
        if share == 0 and there[name] and name == "text":
            logger.info("  its texts alone are not learned: --mixture.%s is 0", name)
    return found


def planned(
    config: LanguageTrainingConfig,
    sources: Mapping[str, Source],
    shares: Mapping[str, float],
    of_image: Callable[[int], int],
) -> dict[str, dict[str, Any]]:
    """Of each kind with a share: samples, share, and epochs, how often the run will show each sample. The samples to a
    row are measured on the first window of the mixture."""
    mixture = Mixture(sources, shares, seed=config.seed)
    drawn = [next(mixture)[1].tokens(of_image) for _ in range(config.window)]
    rows = max(1, len(bin_pack(drawn, config.token_budget, too_long="skip")))
    steps = config.loop.steps * config.loop.accumulate * distributed.world_size()
    return {
        name: {
            "samples": len(source),
            "share": round(float(share), 4),
            "epochs": round(float(share) * steps * config.window / rows / len(source), 2),
        }
        for name, source, share in zip(mixture.names, mixture.sources, mixture.shares, strict=True)
    }


def tell(plan: Mapping[str, Mapping[str, Any]]) -> None:
    """Says how often each sample will be seen, and warns of what is seen less than once."""
    for name, entry in plan.items():
        number = f"{entry['samples']:,}".replace(",", " ")
        logger.info("%-10s %9s samples, share %.2f: %.1f epochs", name, number, entry["share"], entry["epochs"])
    few = [name for name, entry in plan.items() if entry["epochs"] < 1]
    if few:
        logger.warning(
            "not every sample will be seen (%s): more --steps, a larger --token_budget or another --mixture would",
            ", ".join(few),
        )
