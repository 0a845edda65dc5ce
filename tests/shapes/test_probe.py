"""Laws of the probe: it looks at one cell at a time, learns what is there to be learned, and nothing where there is
nothing."""

import numpy as np
import pytest
import torch

from lavit.shapes.probe import CellProbe, ProbeScore, chance, score, train_probe
from lavit.shapes.world import NUM_CLASSES, ShapesWorld


def spelled(cells: np.ndarray, generator: torch.Generator, num_patches: int = 16) -> torch.Tensor:
    """Features (n, 16, NUM_CLASSES) in which one patch of every cell spells the cell's kind, the rest is noise."""
    n, side = len(cells), round(num_patches**0.5)
    features = 0.1 * torch.randn(n, side, side, NUM_CLASSES, generator=generator)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(cells), NUM_CLASSES).float().view(n, 2, 2, NUM_CLASSES)
    features[:, :: side // 2, :: side // 2] += one_hot
    return features.flatten(1, 2)


def test_a_cell_is_read_from_its_own_patches_only():
    probe = CellProbe(num_patches=64, width=6)
    features = torch.randn(2, 64, 6)
    before = probe(features)
    patch = 8 * 5 + 2  # row 5, column 2: bottom left
    features[:, patch] += 1
    changed = (probe(features) != before).any(-1)
    assert changed.tolist() == [[False, False, True, False]] * 2


def test_it_reads_what_is_spelled_and_no_more_than_chance_from_noise():
    generator = torch.Generator().manual_seed(0)
    train, test = ShapesWorld(1).scenes(600).cells, ShapesWorld(1, "test").scenes(300).cells
    probe = train_probe(spelled(train, generator), train, steps=150, learning_rate=1e-2)
    assert probe.score(spelled(test, generator), test).scene > 0.97

    noise = torch.randn(600, 16, NUM_CLASSES, generator=generator)
    blind = train_probe(noise, train, steps=20)
    answers = blind.score(torch.randn(300, 16, NUM_CLASSES, generator=generator), test)
    # Half of the cells are empty; five standard deviations of a share of 1200 cells.
    assert answers.cell < chance(train, test).cell + 5 * 0.5 / 1200**0.5
    assert answers.scene < 0.05


def test_training_is_repeatable_and_leaves_the_callers_generator_alone():
    cells = ShapesWorld(1).scenes(50).cells
    features = spelled(cells, torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first = train_probe(features, cells, steps=3)(features)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    assert torch.equal(train_probe(features, cells, steps=3)(features), first)


def test_chance_gives_the_most_frequent_answers_of_the_known_scenes():
    known = np.array([[1, 0, 0, 2], [1, 0, 0, 2], [0, 3, 0, 0]])
    cells = np.array([[1, 0, 0, 2], [0, 0, 0, 5]])
    assert chance(known, cells) == ProbeScore(cell=5 / 8, scene=1 / 2)


def test_score_counts_cells_and_whole_scenes():
    cells = np.array([[1, 0, 0, 2], [0, 0, 0, 5]])
    answers = np.array([[1, 0, 0, 2], [0, 0, 1, 5]])
    assert score(answers, cells) == ProbeScore(cell=7 / 8, scene=1 / 2)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: CellProbe(num_patches=9, width=4), "num_patches.*9"),
        (lambda: CellProbe(num_patches=8, width=4), "num_patches.*8"),
        (lambda: train_probe(torch.zeros(3, 16, 4), np.zeros((2, 4), dtype=np.int64)), "features.*2 scenes.*got 3"),
        (lambda: score(np.zeros((0, 4)), np.zeros((0, 4))), "answers"),
    ],
)
def test_errors_name_the_argument(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_seed_that_is_not_whole_is_refused_not_cut():
    with pytest.raises(TypeError, match=r"seed: expected a whole number, got 1\.5"):
        train_probe(torch.zeros(2, 16, 4), np.zeros((2, 4), dtype=np.int64), steps=1, seed=1.5)
