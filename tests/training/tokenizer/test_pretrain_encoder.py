"""Laws of the encoder's pre-training: it learns, it can be repeated, and it leaves a frozen encoder behind."""

import pytest
import torch

from lavit.tokenizer import LaVITTokenizer, LaVITTokenizerConfig
from lavit.training.tokenizer.pretrain_encoder import pretrain_encoder


def tokenizer(**changes) -> LaVITTokenizer:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "encoder_depth": 1, "merger_depth": 1, "decoder_depth": 1, **changes}
    return LaVITTokenizer(LaVITTokenizerConfig.preset("small", **sizes))


def test_it_learns_and_freezes():
    model = tokenizer()
    history = pretrain_encoder(model, steps=30, batch_size=16, learning_rate=5e-3, log_every=5)
    assert [row["step"] for row in history] == [5, 10, 15, 20, 25, 30]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert not model.encoder.training


def test_it_can_be_repeated_and_leaves_the_callers_generator_alone():
    first, second = tokenizer(), tokenizer()
    before = torch.get_rng_state()
    pretrain_encoder(first, steps=3, batch_size=4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    pretrain_encoder(second, steps=3, batch_size=4, seed=1)
    for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_encoder_changes():
    model = tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pretrain_encoder(model, steps=2, batch_size=4)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("encoder.") for name in changed)


def test_progress_gets_every_row():
    seen = []
    assert pretrain_encoder(tokenizer(), steps=3, batch_size=4, log_every=2, progress=seen.append) == seen
    assert [row["step"] for row in seen] == [2, 3]


@pytest.mark.parametrize("changes, named", [({"steps": 0}, "steps"), ({"batch_size": 0}, "batch_size")])
def test_errors_name_the_argument(changes, named):
    with pytest.raises(ValueError, match=named):
        pretrain_encoder(tokenizer(), **{"steps": 1, "batch_size": 4, **changes})


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match="image_size 32"):
        pretrain_encoder(tokenizer(image_size=48), steps=1)
