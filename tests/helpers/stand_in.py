"""A tiny model, stream and step function that use every kind of state; also a program for the signal tests."""

from __future__ import annotations

import random
import sys
import time

import numpy as np
import torch
from torch import nn

from lavit.training.engine import loop
from lavit.training.engine.checkpoint import Checkpoints
from lavit.training.engine.metrics import COUNTS, MetricsWriter


class Model(nn.Module):
    """Draws noise in its forward pass, and a step of its optimizer moves a buffer by what the last forward pass saw, as
    with a tokenizer, whose codebook learns so."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.25)
        self.register_buffer("mean", torch.zeros(4))
        self.seen = torch.zeros(4)

    def forward(self, x):
        y = self.drop(self.layer(self.frozen(x)))
        if self.training:
            self.seen = y.detach().mean(0)
        return y + 0.1 * torch.rand_like(y) - self.mean

    def move(self, *_):
        self.mean.lerp_(self.seen, 0.1)


class CountingStream:
    """Batch i is a function of i; `poison` makes some of them NaN."""

    def __init__(self, poison=()) -> None:
        self.position, self.poison = 0, set(poison)

    def __next__(self):
        i, self.position = self.position, self.position + 1
        batch = torch.linspace(-1, 1, 32).reshape(8, 4).roll(i) * (1 + 0.01 * i)
        return batch * float("nan") if i in self.poison else batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def step_function(model, batch, step):
    y = model(batch)
    loss = (y - batch).square().mean() * (1 + 0.01 * random.random() + 0.01 * np.random.rand())
    counts = torch.zeros(16).index_add_(0, batch.flatten().abs().nan_to_num().mul(7).long() % 16, torch.ones(32))
    return {"loss": loss, "size": y.detach().abs().mean(), COUNTS: counts}


def make_run(poison=(), seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    model = Model()
    groups = [{"params": [model.layer.weight], "weight_decay": 0.1}, {"params": [model.layer.bias], "lr_scale": 0.5}]
    optimizer = torch.optim.AdamW(groups)
    optimizer.register_step_post_hook(model.move)
    return loop.Run(model, optimizer, CountingStream(poison))


def everything(run):
    """All numbers of a run, flat, for a comparison bit for bit."""
    state = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    for index, entry in run.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in entry.items()}
    return state | {"torch": torch.get_rng_state(), "position": torch.tensor(run.stream.position)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different


def rows(written):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in written]


def rate(step):
    return 0.01 / (1 + step)


def main(folder: str, resume: str) -> None:
    """Trains slowly in `folder`, telling each micro-batch on stdout, until it ends or is asked to stop."""

    def slow(model, batch, step):
        print("micro", step, flush=True)
        time.sleep(0.02)
        return step_function(model, batch, step)

    run = make_run()
    checkpoints = Checkpoints(folder, constant=("frozen.",))
    if resume == "yes":
        run.load(checkpoints.load(checkpoints.latest()))
    writer = MetricsWriter(folder, resume_at=run.step if resume == "yes" else None, tensorboard=False)
    config = loop.LoopConfig(steps=30, accumulate=3, log_every=4)
    stop = loop.train(run, slow, config, learning_rate=rate, checkpoints=checkpoints, writer=writer)
    writer.close()
    print("stopped by", stop.signal, "at", run.step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
