"""Laws of judging pixels: reconstructions beside their images, and images drawn for captions; each with its own seed,
and an interrupted run the same as an unbroken one."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import on_two_processes

from lavit.commands.evaluation_summary import lines
from lavit.data.annotations import CaptionItem
from lavit.data.images import BLACKENED
from lavit.evaluation.frechet import distance
from lavit.evaluation.journal import Journal
from lavit.evaluation.perceptual import psnr, ssim
from lavit.evaluation.picture_sets import Files, picture_statistics
from lavit.evaluation.prompted import draw_prompts, generate_files
from lavit.evaluation.reconstruction import Judges, reconstruct_files, token_use
from lavit.kernels import Ragged

SIDE = 16


class Colours(torch.nn.Module):
    """Stands in for Inception: the mean colour and the colour of a corner."""

    num_features = 6

    def forward(self, images):
        rows = [torch.cat([image.double().mean((1, 2)), image.double()[:, 0, 0]]) for image in images]
        return torch.stack(rows)


class Distance:
    """Stands in for LPIPS."""

    def __call__(self, first, second):
        return (first.double() - second.double()).abs().mean((1, 2, 3)) / 255


class Brightness:
    """Stands in for CLIP: an image shows its prompt the better, the brighter it is."""

    def __call__(self, prompts, images):
        return [float(np.asarray(image).mean()) for image in images]

    def similarities(self, first, second):
        pairs = zip(first, second, strict=True)
        return torch.tensor([float(np.asarray(a).mean() - np.asarray(b).mean()) for a, b in pairs])


class Tokenizer(torch.nn.Module):
    """An image of brightness b is b // 64 + 1 tokens of the code b // 64."""

    config = SimpleNamespace(num_codes=8)
    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels, deterministic):
        assert deterministic
        codes = [int(pixel.mean()) // 64 for pixel in pixels]
        rows = [torch.full((code + 1,), code) for code in codes]
        return SimpleNamespace(ragged=lambda: Ragged.from_list(rows))


def processor(image):
    return torch.from_numpy(np.array(image.resize((SIDE, SIDE)))).permute(2, 0, 1).unsqueeze(0).float()


processor.seen = lambda image: image  # both sides are scaled


class Draw:
    """Draws codes as gray, with a little noise of the seed; keeps the seeds."""

    def __init__(self, stop=None):
        self.seeds, self.names, self.stop = [], [], stop

    def __call__(self, codes, seeds, names):
        self.seeds += seeds
        self.names += names
        if self.stop in names:
            raise KeyboardInterrupt
        drawn = []
        for ids, seed in zip(codes.unbind(), seeds, strict=True):
            noise = np.random.default_rng(seed).integers(0, 30, (SIDE, SIDE, 3))
            drawn.append(Image.fromarray((int(ids[0]) * 64 + noise).clip(0, 255).astype(np.uint8)))
        return drawn


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(7):
        pixels = np.random.default_rng(number).integers(30 * number, 30 * number + 40, (20, 12 + number, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")
    return [tmp_path / "images" / f"{number}.png" for number in range(7)]


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "drawn").mkdir()
    return tmp_path / "drawn"


ALL = Judges(Colours(), Distance(), Brightness())


def reconstruct(paths, pictures, judges=ALL, draw=None, **more):
    draw = draw or Draw()
    return reconstruct_files(
        Tokenizer(), processor, draw, paths, pictures, judges, seed_of=lambda number: 100 + number, **more
    )


# ------------------------------------------------------------------------------------------------------- reconstruction


def test_every_figure_is_of_the_pairs_as_they_are_drawn(paths, pictures):
    report = reconstruct(paths, pictures, batch_size=3)
    pairs = []
    for path, row in zip(paths, report.results, strict=True):
        drawn = Image.open(row["drawn"])
        true = Image.open(path).resize(drawn.size, Image.Resampling.BICUBIC)
        pairs.append((np.asarray(true), np.asarray(drawn)))
        assert row["file"] == str(path) and drawn.size == (SIDE, SIDE)
        assert row["psnr"] == psnr(*pairs[-1]) and row["ssim"] == ssim(*pairs[-1])
        assert row["lpips"] == pytest.approx(np.abs(pairs[-1][0].astype(int) - pairs[-1][1]).mean() / 255)
    figures = report.score["figures"]
    assert set(figures) == {"rFID", "PSNR", "SSIM", "LPIPS", "CLIP similarity"} and report.score["skipped"] == {}
    for name, key in (("PSNR", "psnr"), ("SSIM", "ssim"), ("LPIPS", "lpips"), ("CLIP similarity", "clip")):
        assert figures[name] == pytest.approx(np.mean([row[key] for row in report.results]))
    features = [np.array([np.r_[one.mean((0, 1)), one[0, 0]] for one in side]) for side in zip(*pairs, strict=True)]
    means, covariances = [f.mean(0) for f in features], [np.cov(f, rowvar=False) for f in features]
    from scipy.linalg import sqrtm

    root = np.real(sqrtm(covariances[0] @ covariances[1]))
    wanted = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert figures["rFID"] == pytest.approx(wanted, rel=1e-4)


def test_tokens_are_counted_over_all_images(paths, pictures):
    use = reconstruct(paths, pictures).score["use"]
    codes = [int(np.asarray(Image.open(path)).mean()) // 64 for path in paths]
    assert use["tokens"] == np.mean([code + 1 for code in codes]) and use["codes"] == 8
    assert (use["fewest_tokens"], use["most_tokens"]) == (min(codes) + 1, max(codes) + 1)
    assert use["codes_used"] == len(set(codes)) > 2
    alike = token_use([[0, 1], [2, 3]], 4)
    assert alike["perplexity"] == pytest.approx(4) and token_use([[3], [3, 3]], 4)["perplexity"] == pytest.approx(1)
    assert token_use([[0, 0, 0, 1]], 4)["perplexity"] == pytest.approx(0.75**-0.75 * 0.25**-0.25)
    assert token_use([[], []], 4) | {"codes": 0} == dict.fromkeys(use, 0)


def test_noise_is_of_the_files_number_whatever_the_batch(paths, pictures):
    draws = [Draw(), Draw()]
    reports = [reconstruct(paths, pictures, draw=d, batch_size=n) for d, n in zip(draws, (1, 4), strict=True)]
    assert draws[0].seeds == draws[1].seeds == [100 + number for number in range(7)]
    assert reports[0] == reports[1]


def test_an_image_that_cannot_be_read_costs_no_other_and_moves_no_seed(paths, pictures):
    paths[2].write_bytes(b"x")
    draw = Draw()
    report = reconstruct(paths, pictures, draw=draw, batch_size=4)
    assert [item.name for item in report.skipped] == [str(paths[2])] and draw.seeds == [100, 101, 103, 104, 105, 106]
    assert [Path(row["drawn"]).name for row in report.results] == [f"{n}.png" for n in (0, 1, 3, 4, 5, 6)]
    for path in paths:
        path.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="images: none of 7 could be used; .*0.png"):
        reconstruct(paths, pictures)


def test_images_that_the_safety_checker_has_blackened_are_counted(paths, pictures):
    class Checked(Draw):
        def __call__(self, codes, seeds, names):
            drawn = super().__call__(codes, seeds, names)
            for image, seed in zip(drawn, seeds, strict=True):
                if seed in (101, 104):
                    image.info[BLACKENED] = True
            return drawn

    report = reconstruct(paths, pictures, draw=Checked(), batch_size=3)
    assert [i for i, row in enumerate(report.results) if row.get(BLACKENED)] == [1, 4]
    assert report.score[BLACKENED] == 2
    assert "  blackened by the safety checker, and counted so: 2" in list(lines("reconstruct", report))
    assert reconstruct(paths, pictures).score[BLACKENED] == 0


def test_what_judges_are_absent_costs_their_figures_alone(paths, pictures):
    lacking = {"FID": "no weights", "LPIPS": "no heads", "CLIP": "no folder"}
    report = reconstruct(paths, pictures, Judges(lacking=lacking))
    assert set(report.score["figures"]) == {"PSNR", "SSIM"}
    assert report.score["skipped"] == {"rFID": "no weights", "LPIPS": "no heads", "CLIP similarity": "no folder"}
    assert report.item_scores == [row["psnr"] for row in report.results]
    alone = reconstruct(paths[:1], pictures)
    assert alone.score["skipped"] == {"rFID": "needs at least two images"}


@pytest.mark.parametrize("lost", [False, True])
def test_an_interrupted_reconstruction_goes_on(paths, pictures, tmp_path, lost):
    whole = reconstruct(paths, pictures)
    for path in pictures.iterdir():
        path.unlink()

    def kept():
        task = Journal(tmp_path / "progress", {}).task("r", lambda row: (pictures / f"{row['number']}.png").is_file())
        return {"kept": task, "batch_size": 2}

    with pytest.raises(KeyboardInterrupt):
        reconstruct(paths, pictures, draw=Draw(stop=str(paths[4])), **kept())
    if lost:  # a picture is gone: it is drawn again
        (pictures / "1.png").unlink()
    draw = Draw()
    again = reconstruct(paths, pictures, draw=draw, **kept())
    assert draw.names == [str(paths[number]) for number in ([1, 4, 5, 6] if lost else [4, 5, 6])]
    assert again == whole


def reconstruct_on_two(rank: int, folder: str) -> None:
    paths = [Path(folder, "images", f"{number}.png") for number in range(7)]
    report = reconstruct(paths, Path(folder, "drawn"), batch_size=2)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(report))


def test_two_processes_judge_as_one_does(paths, pictures, tmp_path):
    paths[2].write_bytes(b"x")
    on_two_processes(reconstruct_on_two, tmp_path)
    first, second = (pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2))
    alone = reconstruct(paths, pictures, batch_size=2)
    # Sums over two processes are added in another order.
    assert first.score.pop("figures") == pytest.approx(alone.score.pop("figures"), rel=1e-9)
    assert first == alone and second.score is None and second.results == alone.results and second.shown == []


# --------------------------------------------------------------------------------------------------------- for captions


@pytest.fixture
def items(paths):
    told = [tuple(f"image {n} told {k}" for k in range(1 + n % 3)) for n in range(len(paths))]
    return [CaptionItem(n, path, told[n]) for n, path in enumerate(paths)]


def test_prompts_are_drawn_by_the_seed_one_of_each_image_first(items):
    prompts = draw_prompts(items, None, 3)
    assert sorted(prompt.item.image_id for prompt in prompts) == list(range(7))
    assert all(prompt.text in prompt.item.captions for prompt in prompts)
    assert draw_prompts(items, None, 3) == prompts != draw_prompts(items, None, 4)
    assert draw_prompts(items, 4, 3) == prompts[:4]
    every = draw_prompts(items, 13, 3)
    assert every[:7] == prompts and len({prompt.text for prompt in every}) == 13
    for count in (0, 14):
        with pytest.raises(ValueError, match=f"prompts: expected 1 to 13, .*got {count}"):
            draw_prompts(items, count, 3)
    with pytest.raises(ValueError, match="expected 1 to 0"):
        draw_prompts([CaptionItem(0, items[0].image, ())], None, 3)


class Asked:
    """Draws tokens by the seed: any of four codes."""

    def __init__(self):
        self.settings, self.seeds = [], {}

    def generate_tokens(self, texts, processor, *, seeds, batch_size, **settings):
        assert batch_size == len(texts) == len(seeds)
        self.settings.append(settings)
        for text, seed in zip(texts, seeds, strict=True):
            if "told 9" in text:
                raise ValueError("cannot be told")
            self.seeds.setdefault(text, []).append(seed)
        return SimpleNamespace(codes=Ragged.from_list([torch.full((1 + seed % 5,), seed % 4) for seed in seeds]))


def generate(prompts, pictures, model=None, draw=None, scorer=None, **more):
    scorer = scorer or Brightness()
    return generate_files(model or Asked(), None, draw or Draw(), prompts, pictures, scorer, **more)


def test_the_best_sample_of_each_prompt_is_kept_and_judged(items, pictures):
    prompts = draw_prompts(items, None, 3)
    true, _ = picture_statistics(Colours(), Files([item.image for item in items]))
    model = Asked()
    report = generate(prompts, pictures, model, samples=3, inception=Colours(), true=true, top_k=7)
    for row, prompt in zip(report.results, prompts, strict=True):
        assert (row["image_id"], row["prompt"]) == (prompt.item.image_id, prompt.text)
        assert np.asarray(Image.open(row["file"])).mean() == row["clip"][row["best"]] == max(row["clip"])
        assert row["tokens"] == 1 + model.seeds[prompt.text][row["best"]] % 5
    assert len({row["best"] for row in report.results}) > 1  # it is not always the first
    made, _ = picture_statistics(Colours(), Files([Path(row["file"]) for row in report.results]))
    figures = report.score["figures"]
    assert figures["FID"] == distance(true, made) and report.score["true_images"] == 7
    assert figures["CLIP score"] == np.mean([max(row["clip"]) for row in report.results])
    assert figures["CLIP score"] > figures["CLIP score of all samples"]
    assert report.settings == {"samples": 3, "top_k": 7} and model.settings[0] == {"top_k": 7}
    assert report.item_scores == [max(row["clip"]) for row in report.results]


def test_a_samples_seed_depends_on_its_prompts_number_and_its_own(items, pictures):
    prompts = draw_prompts(items, None, 3)
    models = [Asked() for _ in range(3)]
    first = generate(prompts, pictures, models[0], samples=3, batch_size=3)
    second = generate(prompts, pictures, models[1], samples=3, batch_size=16)
    generate(prompts, pictures, models[2], samples=2)
    assert models[0].seeds == models[1].seeds and first == second
    assert {text: seeds[:2] for text, seeds in models[0].seeds.items()} == models[2].seeds
    assert len({seed for seeds in models[0].seeds.values() for seed in seeds}) == 21


def test_a_prompt_that_cannot_be_drawn_is_named_and_the_rest_goes_on(items, pictures):
    items[3] = CaptionItem(3, items[3].image, ("told 9",))
    prompts = draw_prompts(items, None, 3)
    report = generate(prompts, pictures, samples=2)
    number = next(i for i, prompt in enumerate(prompts) if prompt.text == "told 9")
    assert [(item.name, item.reason) for item in report.skipped] == [(f"prompt {number}", "cannot be told")]
    assert len(report.results) == 6
    with pytest.raises(ValueError, match="none of 1 could be drawn; cannot be told"):
        generate([prompts[number]], pictures, samples=2)


def test_without_clip_there_is_one_sample_and_without_inception_no_fid(items, pictures):
    prompts = draw_prompts(items, 2, 3)
    with pytest.raises(ValueError, match="samples: the best of 4 is taken by CLIP"):
        generate_files(Asked(), None, Draw(), prompts, pictures, None)
    report = generate_files(Asked(), None, Draw(), prompts, pictures, None, samples=1, lacking={"FID": "no weights"})
    assert set(report.score["figures"]) == {"tokens"} and report.score["skipped"] == {"FID": "no weights"}
    assert report.item_scores == [] and "clip" not in report.results[0]
    true, _ = picture_statistics(Colours(), Files([item.image for item in items]))
    for asked, known in ((prompts[:1], true), (prompts, None)):
        few = generate(asked, pictures, inception=Colours(), true=known)
        assert few.score["skipped"] == {"FID": "needs at least two images"}
