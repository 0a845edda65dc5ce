"""Every label of a step weighs the same, in whichever row, micro-batch and process it is."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from processes import on_two_processes
from tiny_lavit import TEXT_SIZE, images, llama, tokenizer

from lavit.data.mixture import PackedRow, Sample
from lavit.kernels import Loss, Segment
from lavit.language.model import LaVIT
from lavit.training.engine import distributed, loop
from lavit.training.language.data import ImageStore
from lavit.training.language.objective import Step, label_counts, parameter_groups, weigh_rows

IMAGES = 5
OBJECTIVES = ("classify", "regress")


def build(objective: str) -> tuple[LaVIT, ImageStore]:
    visual = tokenizer()
    model = LaVIT.from_parts(llama(), visual, image_objective=objective).double()
    with torch.no_grad():
        return model, ImageStore(
            model.visual_tokenizer, model.visual_tokenizer.encode_features(images(IMAGES).double())
        )


def random_sample(generator: torch.Generator) -> Sample:
    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    kinds = tuple(Segment(number(3)) for _ in range(1 + number(4)))
    texts = tuple(tuple(number(TEXT_SIZE) for _ in range(number(9))) for kind in kinds if kind == Segment.TEXT)
    shown = tuple(number(IMAGES) for kind in kinds if kind != Segment.TEXT)
    loss = tuple(Loss(number(8)) for _ in kinds) if number(3) else None
    return Sample(kinds, texts, shown, loss)


def packed(samples: list[Sample], store: ImageStore) -> PackedRow:
    return PackedRow.of(samples, sum(sample.tokens(store.length) for sample in samples), [0] * len(samples))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_labels_counted_ahead_are_those_that_the_model_finds(objective: str) -> None:
    model, store = build(objective)
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(150):
        row = packed([random_sample(generator) for _ in range(3)], store)
        counts = label_counts(row, store.length, model.vocabulary, objective == "regress")
        features, tokens = store.take(row.images)
        with torch.no_grad():
            out = model(row.text, row.segments, loss=row.loss, features=features, tokens=tokens)
        assert counts["text_labels"] == int(out.text_labels)
        assert counts["image_labels"] == int(out.image_labels)
        words = int(out.num_labels) - (int(out.image_labels) if objective == "regress" else 0)
        assert counts["labels"] == words
        found += counts["image_labels"]
    assert found > 100


class Rows:
    def __init__(self, rows: list[PackedRow]) -> None:
        self.rows = iter(rows)

    def __next__(self) -> PackedRow:
        return next(self.rows)

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise NotImplementedError


def uneven() -> list[Sample]:
    """Of few and of many labels: a short caption, a long text, an image with its prompt, a text without labels."""
    text, codes = Segment.TEXT, Segment.CODES
    return [
        Sample((Segment.FEATURES, text), ((3, 4, 5),), (0,)),
        Sample((text,), (tuple(i % TEXT_SIZE for i in range(42)),)),
        Sample((text, codes), ((7, 8),), (1,), (Loss.NONE, Loss.ALL)),
        Sample((text, codes, text), ((1,), (2, 9, 9, 2)), (2,)),
    ]


def one_step(objective: str, rows: list[list[Sample]], world: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
    """What one step of SGD makes of the model, and the numbers that it reports."""
    model, store = build(objective)
    groups = parameter_groups(model.train(), weight_decay=0.0)
    run = loop.Run(model, torch.optim.SGD(groups, lr=1.0), Rows([packed(row, store) for row in rows[rank::world]]))
    run.replica = distributed.replicate(Step(model, store), torch.device("cpu"))
    config = loop.LoopConfig(steps=1, batch_size=1, accumulate=len(rows) // world, clip=0.0, log_every=1)
    regress = objective == "regress"
    counts_of = partial(label_counts, of_image=store.length, vocabulary=model.vocabulary, regress=regress)
    told: list[dict[str, float]] = []
    loop.train(
        run,
        lambda step, row, _, **shares: step(row, **shares),
        config,
        learning_rate=lambda _: 1.0,
        look_ahead=partial(weigh_rows, counts_of=counts_of, device=torch.device("cpu")),
        progress=told.append,
    )
    numbers = {name: torch.tensor(told[0][name]) for name in ("loss", "text_loss", "image_loss")} if told else {}
    return numbers | model.state_dict()


def one_of_two(rank: int, folder: str, objective: str) -> None:
    found = one_step(objective, [[sample] for sample in uneven()], world=2, rank=rank)
    if rank == 0:
        torch.save(found, f"{folder}/two.pt")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_row_of_all_is_four_rows_is_two_processes_of_two(tmp_path, objective: str) -> None:
    whole = one_step(objective, [uneven()])
    start = build(objective)[0].state_dict()
    on_two_processes(one_of_two, tmp_path, objective)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    four = one_step(objective, [[sample] for sample in uneven()])
    for other in (four, two):
        for name, value in whole.items():
            # The shares are float32.
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=f"{name}")
    moved = max(float((whole[name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-2
