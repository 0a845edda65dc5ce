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


def images_of(folder: CaptionedFolder) -> dict[str, int]:
    """How many images have samples of each kind; of texts alone how many there are, at most the images of a kind."""
    captioned = len({item.image for item in folder.captions if item.captions})
    asked = [item.image for item in folder.questions if usual_answer(item.answers)] if folder.answered else []
    found = {
        "caption": captioned,
        "image": captioned,
        "unprompted": captioned,
        "question": len(set(asked)),
        "edit": len({item.result for item in folder.edits}),
    }
    return found | {"text": min(len(folder.texts), max(1, *found.values()))}


def shares_of(mixture: MixtureConfig, folder: CaptionedFolder) -> dict[str, float]:
    """The share of each kind, by the settings; where these follow the data, times the part of the images that have such
    samples, so that every image weighs alike and what there is not has no share.

    Raises ValueError where a share was given by hand to what the folder lacks, or nothing is left.
    """
    there, shares = images_of(folder), mixture.shares
    lacking = [name for name, share in shares.items() if share > 0 and not there[name]]
    if lacking and not (mixture.follow and set(lacking) < {name for name, share in shares.items() if share > 0}):
        wanted = (f"mixture.{name}: expected 0, got {shares[name]}: {folder.lacks(name)}" for name in lacking)
        raise ValueError("; ".join(wanted))
    if not mixture.follow:
        return shares
    most = max(there.values())
    found = {name: share * there[name] / most for name, share in shares.items()}
    told = ", ".join(f"{name} {share / sum(found.values()):.2f}" for name, share in found.items() if share > 0)
    logger.info("mixture by what %s holds: %s", folder.root, told)
    reasons = {name: folder.lacks(name) for name in lacking}
    for reason in dict.fromkeys(reasons.values()):
        logger.info("  %s 0: %s", ", ".join(name for name in lacking if reasons[name] == reason), reason)
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
    """Of each kind with a share: samples, share, and epochs, how often the run will show each caption, question or
    other entry that there is a sample of. The samples to a row are measured on the first window of the mixture."""
    mixture = Mixture(sources, shares, seed=config.seed)
    drawn = [next(mixture)[1].tokens(of_image) for _ in range(config.window)]
    rows = max(1, len(bin_pack(drawn, config.token_budget, too_long="skip")))
    steps = config.loop.steps * config.loop.accumulate * distributed.world_size()
    shown = steps * config.window / rows
    return {
        name: {
            "samples": len(source),
            "share": round(float(share), 4),
            "epochs": round(float(share) * shown / len(source) * getattr(source, "repeats", 1.0), 2),
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
