"""What `accelerate` recognises, what it refuses, and that nothing but methods changes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import release_alike as release
import torch
from torch import nn

import lavit
from lavit import accelerate, restore
from lavit.acceleration import comparison, registry


def state(model):
    return {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}


def classes(model):
    return {name: type(module) for name, module in model.named_modules()}


def images(count=3):
    return torch.randn(count, 3, 24, 24)


@pytest.mark.parametrize("policy", ["exact", "fast"])
def test_everything_of_the_release_is_replaced_and_state_dict_is_untouched(policy):
    model = release.Generation()
    before = state(model)
    report = accelerate(model, policy)
    assert report.policy == policy and not report.left
    assert {entry.part for entry in report.replaced} == {
        "encoder attention",
        "selector",
        "merger self-attention",
        "merger cross-attention",
        "quantizer",
        "tokenizer",
        "decoder self-attention",
        "decoder cross-attention",
        "high-resolution decoder",
        "image generation",
    }
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(value.data_ptr() == before[name][0] and value.equal(before[name][1]) for name, value in after.items())


def test_a_default_device_of_the_program_makes_no_difference():
    model = release.Generation()
    torch.set_default_device("meta")
    try:
        report = accelerate(model)
    finally:
        torch.set_default_device(None)
    assert not report.left and report.replaced


def test_without_a_tokenizer_the_rest_is_replaced():
    report = accelerate(release.Generation("lowres", load_tokenizer=False))
    assert {"image generation", "low-resolution decoder", "quantizer"} <= {entry.part for entry in report.replaced}


def test_results_that_are_not_finite_are_told_as_such():
    model = release.Tokenizer(depth=1)
    with torch.no_grad():
        model.token_predictor.in_conv[1].weight.fill_(torch.nan)
    (left,) = [entry for entry in accelerate(model).left if entry.part == "selector"]
    assert left.reason == "its own results are not finite on a small input"


def test_report_says_what_and_why_in_lines_of_blocks_together():
    model = release.Tokenizer(depth=3)
    model.causal_encoder.blocks[1].token_causal_attn.scale *= 2
    text = str(accelerate(model))
    assert text.splitlines()[0] == "accelerated, policy 'exact'"
    assert "encoder.blocks.*.attn (2)" in text and "causal_encoder.blocks.*.token_cross_attn (3)" in text
    left = text.split("left as they are\n")[1].splitlines()
    assert str(restore(model)).splitlines()[0] == "restored, accelerated until now by policy 'exact'"
    assert len(left) == 2
    assert left[0].split() == (
        "(the model) tokenizer: its causal_encoder.blocks.1.token_causal_attn is no merger self-attention, or was left"
    ).split()
    assert "causal_encoder.blocks.1.token_causal_attn" in left[1] and "scale: expected 0.288675" in left[1]


def test_what_gains_nothing_is_named_with_the_reason():
    model = nn.Module()
    model.visual_tokenizer, model.llama_model = release.Tokenizer(), nn.Linear(2, 2)
    names = ("conv_in", "time_proj", "down_blocks", "mid_block", "up_blocks")
    unet = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
    report = accelerate(nn.ModuleDict({"understanding": model, "unet": unet}))
    reasons = {entry.part: entry.reason for entry in report.left}
    assert set(reasons) == {"text generation", "U-Net"}
    assert "beam search" in reasons["text generation"] and "one pass already" in reasons["U-Net"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_compared_under_autocast_and_replaced(dtype):
    """As the release casts them: linear and convolution layers, and the language model."""
    model = release.Generation()
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.to(dtype)
    model.llama_model.to(dtype)
    before = {name: value.dtype for name, value in model.state_dict().items()}
    assert not accelerate(model).left
    assert {name: value.dtype for name, value in model.state_dict().items()} == before
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        x = images()
        torch.manual_seed(1)
        found = model.visual_tokenizer.tokenize_image(x)
        restore(model)
        torch.manual_seed(1)
        wanted = model.visual_tokenizer.tokenize_image(x)
    same = torch.cat([(a == b).double() for a, b in zip(found, wanted, strict=True)])
    assert same.mean() > 0.75  # bfloat16 decides between near codes


def test_isinstance_names_and_signature_hold():
    model = release.Tokenizer()
    accelerate(model)
    assert isinstance(model, release.Tokenizer) and type(model).__name__ == "Tokenizer"
    assert repr(model) == repr(release.Tokenizer())


def test_random_generators_modes_and_gradients_are_as_they_were():
    model = release.Generation().train()
    wanted = torch.random.get_rng_state()
    asked = [p.requires_grad for p in model.parameters()]
    accelerate(model, "fast")
    assert torch.random.get_rng_state().equal(wanted)
    assert all(module.training for module in (model, model.tokenizer_decoder, model.visual_tokenizer))
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())


ODD = {
    "another scale": (lambda t: setattr(t.encoder.blocks[0].attn, "scale", 1.0), "encoder attention", "scale"),
    "a rotation": (lambda t: setattr(t.encoder.blocks[0].attn, "rope", nn.Identity()), "encoder attention", "rope"),
    "xformers": (lambda t: setattr(t.encoder.blocks[0].attn, "xattn", True), "encoder attention", "xformers"),
    "dropout": (lambda t: setattr(t.encoder.blocks[0].attn.attn_drop, "p", 0.1), "encoder attention", "dropout"),
    "a bias too many": (
        lambda t: setattr(t.encoder.blocks[0].attn, "qkv", nn.Linear(48, 144)),
        "encoder attention",
        "without bias",
    ),
    "another width": (lambda t: t.token_predictor.out_conv.__setitem__(2, nn.Linear(24, 13)), "selector", "shape"),
    "another activation": (lambda t: t.token_predictor.out_conv.__setitem__(1, nn.ReLU()), "selector", "GELU"),
    "heads that do not divide": (
        lambda t: setattr(t.causal_encoder.blocks[0].token_cross_attn, "num_heads", 5),
        "merger cross-attention",
        "num_heads",
    ),
    "another codebook": (lambda t: setattr(t.quantize, "codebook_dim", 9), "quantizer", "codebook_dim"),
    "a part too many": (lambda t: t.add_module("adapter", nn.Linear(2, 2)), "tokenizer", "adapter"),
    "a patched forward": (
        lambda t: setattr(t.token_predictor, "forward", t.token_predictor.forward),
        "selector",
        "set by someone",
    ),
}


@pytest.mark.parametrize("change, part, reason", ODD.values(), ids=list(ODD))
def test_what_looks_alike_and_is_odd_is_left_with_the_reason(change, part, reason):
    model = release.Tokenizer()
    change(model)
    kind = classes(model)
    report = accelerate(model)
    assert any(entry.part == part and reason in entry.reason for entry in report.left)
    for entry in report.left:
        assert type(model.get_submodule(entry.name)) is kind[entry.name]


class OtherEpsilon(release.CrossAttention):
    def forward(self, x, x_origin, decisions):
        own, release.weighted = release.weighted, lambda s, p: own_weighted(s, p, eps=1e-2)
        try:
            return super().forward(x, x_origin, decisions)
        finally:
            release.weighted = own


own_weighted = release.weighted


class Deterministic(release.Tokenizer):
    def _merged(self, images):
        features = self.encoder(images, return_all_features=True)[:, 1:]
        scores = self.token_predictor(features.float(), torch.ones(*features.shape[:2], 1))
        keep = (scores[..., 0] > scores[..., 1]).to(features.dtype)
        return self.causal_encoder(features, keep), keep.long()


class Cosine(release.Quantizer):
    def tokenize(self, z):
        ids = (z.reshape(-1, self.codebook_dim) @ self.embedding.weight.T).argmin(dim=1)
        return self.embedding(ids), ids


def test_another_formula_behind_the_same_names_and_shapes_is_left():
    model = nn.ModuleList([OtherEpsilon(48, 4), Cosine(64, 8), Deterministic(), release.Selector(48)])
    report = accelerate(model, "fast")
    left = {entry.name: entry.reason for entry in report.left}
    assert set(left) == {"0", "1", "2"}
    assert "differ" in left["0"] and "agree in" in left["1"]
    assert type(model[2]) is Deterministic and type(model[0]) is OtherEpsilon
    assert "accelerated" not in str(left)


class StraightThrough(release.Quantizer):
    def tokenize(self, z):
        codes, ids = super().tokenize(z)
        unit = torch.nn.functional.normalize(z, dim=-1).reshape(-1, self.codebook_dim)
        return unit + (codes - unit).detach(), ids


class FrozenKeys(release.CausalAttention):
    def forward(self, x, decisions):
        weight = self.qkv.weight
        self.qkv.weight = nn.Parameter(weight.detach())
        try:
            return super().forward(x, decisions)
        finally:
            self.qkv.weight = weight


@pytest.mark.parametrize("module", [StraightThrough(64, 8), FrozenKeys(48, 4)], ids=["to the input", "to a parameter"])
def test_the_same_values_with_another_gradient_are_left(module):
    with pytest.raises(ValueError, match="differ from the new ones"):
        accelerate(module)


def test_a_gradient_of_bounded_size_is_compared(monkeypatch):
    """A whole tokenizer's gradient would be gigabytes at the release's size."""
    monkeypatch.setattr(comparison, "COMPARED", 100)
    sizes = []
    own = comparison._compare_gradients
    monkeypatch.setattr(
        comparison, "_compare_gradients", lambda was, now, dtype: (sizes.append(was), own(was, now, dtype))
    )
    accelerate(release.Tokenizer())
    assert 512 in [x.numel() for x in sizes if x is not None]  # of the codebook, one parameter in any case
    assert all(x is None or x.numel() <= 512 for x in sizes)


def test_without_comparison_names_and_shapes_decide():
    model = nn.ModuleList([OtherEpsilon(48, 4)])
    with pytest.raises(ValueError, match="can be replaced: 0, merger cross-attention: its results differ"):
        accelerate(model)
    assert type(model[0]) is OtherEpsilon
    assert accelerate(model, compare=False).replaced[0].name == "0"


def test_a_module_whose_own_methods_fail_is_left():
    class Broken(release.Selector):
        def forward(self, x, policy):
            raise RuntimeError("no kernel for this device")

    with pytest.raises(ValueError, match="its own methods fail on a small input: RuntimeError: no kernel"):
        accelerate(Broken(48))


def test_errors_name_what_came_and_leave_the_model():
    model = release.Tokenizer()
    kind = classes(model)
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got OrderedDict"):
        accelerate(model.state_dict())
    with pytest.raises(ValueError, match="policy: expected one of 'exact', 'fast', got 'quick'"):
        accelerate(model, "quick")
    with pytest.raises(ValueError, match="model: nothing in it has the names"):
        accelerate(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="model: expected an accelerated one"):
        restore(model)
    assert classes(model) == kind


def test_an_accelerated_model_is_refused_and_stays_accelerated():
    model = release.Tokenizer()
    accelerate(model, "fast")
    kind = classes(model)
    with pytest.raises(ValueError, match="it is accelerated already, policy 'fast'"):
        accelerate(model, "exact")
    with pytest.raises(ValueError, match="its module '0' is accelerated already"):
        accelerate(nn.ModuleList([model]))
    assert classes(model) == kind


def test_one_half_on_another_device_is_refused_by_name():
    model = release.Tokenizer()
    model.quantize.to("meta")
    kind = classes(model)
    with pytest.raises(ValueError, match="on one device, got quantize.embedding.weight on meta, .* on cpu"):
        accelerate(model)
    assert classes(model) == kind
    with pytest.raises(ValueError, match="parameters on the meta device"):
        accelerate(release.Tokenizer().to("meta"))


def test_a_failure_on_the_way_leaves_the_model(monkeypatch):
    model = release.Tokenizer()
    kind = classes(model)
    part = registry.PARTS["tokenizer"]

    def fails(module, normal):
        raise MemoryError("no room")

    broken = registry.Part("tokenizer", part.alike, part.check, part.methods, fails)
    monkeypatch.setitem(registry.PARTS, "tokenizer", broken)
    with pytest.raises(MemoryError):
        accelerate(model)
    assert classes(model) == kind


def test_a_new_family_is_an_entry():
    class Doubler(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor_of_doubler = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x):
            return x * self.factor_of_doubler

    class Methods:
        def forward(self, x):
            Methods.ran = True
            return self.factor_of_doubler * x

    part = registry.Part(
        "doubler",
        lambda module: "factor_of_doubler" in module._parameters,
        lambda module: None,
        Methods,
        lambda module, normal: [lambda m: m(torch.ones(3))],
    )
    registry.register(part)
    try:
        with pytest.raises(ValueError, match="'doubler' is registered already"):
            registry.register(part)
        model = nn.Sequential(Doubler())
        assert accelerate(model).replaced[0].part == "doubler"
        Methods.ran = False
        model(torch.ones(3))
        assert Methods.ran
    finally:
        del registry.PARTS["doubler"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_accelerated_and_has_parameters_of_its_own(copied):
    model = release.Tokenizer()
    accelerate(model, "fast")
    twin = copied(model)
    x = images()
    with torch.no_grad():
        torch.manual_seed(1)
        wanted = model.tokenize_image(x)
        for parameter in model.parameters():
            parameter.zero_()
        torch.manual_seed(1)
        assert all(a.equal(b) for a, b in zip(twin.tokenize_image(x), wanted, strict=True))
    assert [e.part for e in restore(twin).replaced] == [e.part for e in restore(model).replaced]
    assert type(twin) is release.Tokenizer


def test_weights_saved_and_loaded_pass_between_both_forms():
    model, other = release.Tokenizer(), release.Tokenizer()
    accelerate(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    model.load_state_dict(other.state_dict(), assign=True)  # other Parameter objects
    with torch.no_grad():
        x = images()
        torch.manual_seed(1)
        wanted = other.tokenize_image(x)
        torch.manual_seed(1)
        assert all(a.equal(b) for a, b in zip(model.tokenize_image(x), wanted, strict=True))


def test_restore_refuses_a_class_changed_since():
    model = release.Selector(48)
    accelerate(model)
    changed = type(model)
    model.__class__ = type("Sharded", (changed,), {})
    with pytest.raises(ValueError, match="the class of the model was changed after accelerate"):
        restore(model)
    model.__class__ = changed
    restore(model)


def test_public_names():
    assert lavit.accelerate is accelerate and lavit.restore is restore
    assert {"accelerate", "restore"} <= set(dir(lavit))
