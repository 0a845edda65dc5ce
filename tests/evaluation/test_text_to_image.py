"""Laws of judging generated images: the best sample is the scorer's best, CLIP's score is the cosine, FID follows its
formula, and scenes are read by the probe."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lavit.evaluation.text_to_image import (
    ClipScorer,
    Ranked,
    frechet_distance,
    rerank,
    score_generated_scenes,
)
from lavit.shapes.probe import CellProbe
from lavit.shapes.scores import SceneScore, scene_chance
from lavit.shapes.world import NUM_CLASSES, ShapesWorld

# ----------------------------------------------------------------------------------------------------------- re-ranking


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_best_sample_is_the_scorers_best_and_the_first_among_equals(batch_size):
    calls = []

    def scorer(prompts, images):
        calls.append(len(prompts))
        signs = {"more": 1, "less": -1}
        return torch.tensor([image * signs[prompt] for prompt, image in zip(prompts, images, strict=True)])

    ranked = rerank(["more", "less", "more"], [[1, 5, 2], [4], [3, 3]], scorer, batch_size=batch_size)
    assert ranked == [Ranked(1, (1, 5, 2)), Ranked(0, (-4,)), Ranked(0, (3, 3))]
    assert sum(calls) == 6 and max(calls) <= batch_size
    assert ranked[0].as_dict() == {"best": 1, "scores": (1, 5, 2)}
    assert rerank([], [], scorer) == []


@pytest.mark.parametrize(
    "samples, scores, named",
    [
        ([[1]], [1], "samples.*2 prompts, got 1"),
        ([[1], []], [1], "samples.*prompt 1, 'b'"),
        ([[1], [2]], [1], "scorer.*2 scores.*got 1"),
        ([[1], [2]], [1, float("nan")], "scorer.*NaN for prompt 1, 'b'"),
    ],
)
def test_errors_of_ranking_name_the_prompt(samples, scores, named):
    with pytest.raises(ValueError, match=named):
        rerank(["a", "b"], samples, lambda prompts, images: scores)
    with pytest.raises(ValueError, match="batch_size"):
        rerank(["a"], [[1]], lambda prompts, images: [1], batch_size=0)


# ----------------------------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP with random weights, saved as transformers saves them; its vocabulary is single letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(pieces), "max_position_embeddings": 12, "eos_token_id": len(pieces) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    pixels = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    processor = {"image_processor_type": "CLIPImageProcessor"} | pixels
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def picture(colour, size=(9, 12)):
    return Image.new("RGB", size, colour)


def test_clip_score_is_the_cosine_of_the_embeddings(clip):
    scorer = ClipScorer(clip)
    prompts, images = ["a red dog", "cat"], [picture("red"), picture("blue")]
    scores = scorer(prompts, images)
    assert scores.shape == (2,) and scores.dtype == torch.float32
    text = scorer.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = scorer.image_processor(images, return_tensors="pt")
    out = scorer.model(**text, **pixels)
    # The model's own logits for the pairs, without its learned scale.
    cosines = out.logits_per_image.diagonal() / scorer.model.logit_scale.exp()
    torch.testing.assert_close(scores, 100 * cosines, rtol=1e-5, atol=1e-4)
    assert scorer([], []).shape == (0,)


def test_clip_score_does_not_depend_on_the_other_pairs(clip):
    scorer = ClipScorer(clip)
    pairs = [("a very long prompt that is cut", picture("red")), ("cat", picture("blue")), ("", picture("green"))]
    together = scorer([p for p, _ in pairs], [i for _, i in pairs])
    alone = torch.cat([scorer([p], [i]) for p, i in pairs])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    ranked = rerank(["cat"], [[picture("red"), picture("blue")]], scorer)
    assert ranked[0].scores[1] == pytest.approx(float(together[1]), abs=1e-4)


def test_similarity_of_images_is_the_cosine_of_their_embeddings(clip):
    scorer = ClipScorer(clip)
    first, second = [picture("red"), picture("blue")], [picture("red"), picture("green", (30, 8))]
    found = scorer.similarities(first, second)
    vision = scorer.model.visual_projection(
        scorer.model.vision_model(**scorer.image_processor([*first, *second], return_tensors="pt")).pooler_output
    )
    vision = vision / vision.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found, 100 * (vision[:2] * vision[2:]).sum(1), rtol=1e-5, atol=1e-4)
    assert found[0] == pytest.approx(100, abs=1e-3) and scorer.similarities([], []).shape == (0,)
    with pytest.raises(ValueError, match="second: expected one for each of 2 images, got 1"):
        scorer.similarities(first, second[:1])


def test_errors_of_clip_name_the_argument(clip, tmp_path):
    with pytest.raises(ValueError, match="folder.*none"):
        ClipScorer(tmp_path / "none")
    with pytest.raises(ValueError, match="images.*1 prompts, got 2"):
        ClipScorer(clip)(["a"], [picture("red")] * 2)


# ------------------------------------------------------------------------------------------------------------------ FID


class Moments(torch.nn.Module):
    """Three features, so that the distance can be computed by hand."""

    num_features = 3

    def forward(self, images):
        return images.double().mean((2, 3))


def batches(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 100, (60, 3, 1, 1), generator=generator) + shift
    return colours.expand(60, 3, 4, 4).to(torch.uint8).split(25)


def test_frechet_distance_is_the_formula():
    """With features in three independent directions of which only the mean differs: its squared distance."""
    real, shifted = batches(0, 0), batches(0, 30)
    assert frechet_distance(real, real, features=Moments()).value == pytest.approx(0, abs=1e-6)
    assert frechet_distance(real, shifted, features=Moments()).value == pytest.approx(3 * 30**2, rel=1e-6)
    with pytest.raises(ValueError, match="generated.*two images, got 1"):
        frechet_distance(real, [real[0][:1]], features=Moments())
    with pytest.raises(ValueError, match=r"real.*uint8.*\(25, 3, 4, 4\) of torch.float32"):
        frechet_distance([real[0].float()], real, features=Moments())


def test_frechet_distance_is_torchmetrics():
    package = pytest.importorskip("torchmetrics.image.fid", reason="pip install 'lavit[evaluation]'")
    real, generated = (torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8) for _ in range(2))
    metric = package.FrechetInceptionDistance(feature=Moments()).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    found = frechet_distance([real], [generated], features=Moments())
    assert found.value == pytest.approx(float(metric.compute()), rel=1e-9)


def test_without_weights_frechet_distance_says_why(monkeypatch, tmp_path):
    missing = frechet_distance([], [], weights=tmp_path / "none.pth")
    assert missing.value is None and "none.pth" in missing.reason
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert frechet_distance([], []).reason.startswith("the weights of FID's Inception are not there")


# --------------------------------------------------------------------------------------------------------------- scenes


class Reader(CellProbe):
    """Reads the kind that the first patch of each cell spells."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.view(-1, 4, 4, NUM_CLASSES)[:, ::2, ::2].flatten(1, 2)


def spelled(cells: np.ndarray) -> torch.Tensor:
    """Features (n, 16, NUM_CLASSES) in which one patch of every cell spells the cell's kind."""
    features = torch.zeros(len(cells), 4, 4, NUM_CLASSES)
    features[:, ::2, ::2] = torch.nn.functional.one_hot(torch.from_numpy(cells), NUM_CLASSES).float().view(-1, 2, 2, 13)
    return features.flatten(1, 2)


def test_generated_scenes_are_judged_by_what_the_probe_reads():
    asked = ShapesWorld(1, "test").scenes(1000).cells
    probe = Reader(num_patches=16, width=NUM_CLASSES)
    report = score_generated_scenes(probe, spelled(asked), asked)
    assert report.score == SceneScore(1, 1, 1) and (report.constant, report.other) == scene_chance()

    other = score_generated_scenes(probe, spelled(np.roll(asked, 1, axis=0)), asked)
    # Images of other scenes are worth what chance says, within five standard deviations.
    assert abs(other.score.recall - other.other.recall) < 5 * (other.other.recall / 2000) ** 0.5
    assert abs(other.score.exact - other.other.exact) < 5 * (other.other.exact / 1000) ** 0.5
