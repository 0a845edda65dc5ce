"""Laws of PSNR, SSIM and LPIPS: their formulas, and the numbers of their own packages."""

import math

import numpy as np
import pytest
import torch

from lavit.evaluation import metric_weights
from lavit.evaluation.metric_weights import ALEXNET, CLIP, LPIPS_HEADS, WeightsError, find_clip
from lavit.evaluation.perceptual import LPIPS, MOST, load_lpips, psnr, ssim

CHANNELS = (64, 192, 384, 256, 256)


def pair(height=40, width=52):
    first = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = np.random.default_rng(1).normal(0, 25, first.shape)
    return first, np.clip(first * 0.8 + noise + 20, 0, 255).astype(np.uint8)


def as_batch(picture):
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0)


def test_psnr_is_its_formula():
    first = np.zeros((4, 5, 3), np.uint8)
    assert psnr(first, first + np.uint8(5)) == pytest.approx(20 * math.log10(255 / 5), rel=1e-12)
    assert psnr(first, first) == MOST
    one_off = first.copy()
    one_off[0, 0, 0] = 200  # below as above: no wrap-around of bytes
    assert psnr(first, one_off) == psnr(one_off, first) == pytest.approx(10 * math.log10(255**2 * 60 / 200**2))


def test_ssim_is_wangs_formula():
    """Told again: a Gaussian of 1.5 pixels over 11 x 11, where it lies inside."""
    first, second = pair(24, 30)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    kernel = torch.from_numpy(np.outer(line, line) / line.sum() ** 2).view(1, 1, 11, 11)

    def mean(x):
        return torch.nn.functional.conv2d(x, kernel)

    x, y = (torch.from_numpy(p).double().permute(2, 0, 1).unsqueeze(1) for p in (first, second))
    a, b = mean(x), mean(y)
    of_x, of_y, both = mean(x * x) - a * a, mean(y * y) - b * b, mean(x * y) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wanted = ((2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (of_x + of_y + c2))).mean()
    assert ssim(first, second) == pytest.approx(float(wanted), rel=1e-9)
    assert ssim(first, first) == pytest.approx(1)


def test_psnr_and_ssim_are_torchmetrics():
    package = pytest.importorskip("torchmetrics.functional.image", reason="pip install 'lavit[evaluation]'")
    first, second = pair()
    x, y = as_batch(first).double(), as_batch(second).double()
    assert psnr(first, second) == pytest.approx(float(package.peak_signal_noise_ratio(x, y, data_range=255.0)), 1e-6)
    _, places = package.structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    # It also counts the border, over which it mirrors the picture.
    assert ssim(first, second) == pytest.approx(float(places[..., 5:-5, 5:-5].mean()), rel=1e-6)


def test_errors_of_psnr_and_ssim_name_the_picture():
    first, second = pair()
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=r"second: expected the shape of first.*got \(40, 51, 3\)"):
            measure(first, second[:, :-1])
        with pytest.raises(ValueError, match=r"first: expected \(H, W, 3\) uint8, got \(40, 52, 3\) of float64"):
            measure(first / 2, second)
    with pytest.raises(ValueError, match="SSIM: expected pictures of at least 11 x 11, got 52 x 10"):
        ssim(first[:10], second[:10])


@pytest.fixture
def weights(tmp_path):
    """Random ones, as torchvision and LPIPS save theirs."""
    trunk, inside = {}, 3
    for number, out, size, *_ in LPIPS.LAYERS:
        trunk[f"features.{number}.weight"] = torch.randn(out, inside, size, size) / math.sqrt(inside * size * size)
        trunk[f"features.{number}.bias"] = torch.randn(out) / 10
        inside = out
    trunk["classifier.1.weight"] = torch.zeros(2, 2)
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(CHANNELS)}
    torch.save(trunk, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    return tmp_path / "alexnet.pth", tmp_path / "alex.pth"


def test_lpips_is_its_formula(weights):
    """Told again, layer by layer."""
    first, second = map(as_batch, pair())
    trunk, heads = (torch.load(path, weights_only=True) for path in weights)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pictures = [(x.float() / 127.5 - 1 - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1) for x in (first, second)]
    wanted = 0.0
    for place, (number, _, _, stride, around) in enumerate(LPIPS.LAYERS):
        if place in (1, 2):
            pictures = [torch.nn.functional.max_pool2d(x, 3, 2) for x in pictures]
        weight, bias = trunk[f"features.{number}.weight"], trunk[f"features.{number}.bias"]
        pictures = [torch.relu(torch.nn.functional.conv2d(x, weight, bias, stride, around)) for x in pictures]
        one, two = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in pictures)
        wanted += float((heads[f"lin{place}.model.1.weight"] * (one - two) ** 2).sum(1).mean())
    network = load_lpips(*weights)
    assert float(network(first, second)) == pytest.approx(wanted, rel=1e-5) and wanted > 0
    assert float(network(first, first)) == 0
    together = network(torch.cat([first, second]), torch.cat([second, second]))
    torch.testing.assert_close(together, torch.tensor([wanted, 0.0]), rtol=1e-5, atol=1e-6)


def test_lpips_is_its_packages(weights):
    package = pytest.importorskip("lpips", reason="pip install lpips")
    theirs = package.LPIPS(net="alex", pnet_rand=True, verbose=False, model_path=str(weights[1]))
    trunk = torch.load(weights[0], weights_only=True)
    for part in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5):
        for number, layer in part.named_children():
            if hasattr(layer, "weight"):
                layer.weight.data, layer.bias.data = (trunk[f"features.{number}.{n}"] for n in ("weight", "bias"))
    first, second = map(as_batch, pair(64, 64))
    with torch.no_grad():
        wanted = theirs(first / 127.5 - 1, second / 127.5 - 1)
    torch.testing.assert_close(load_lpips(*weights)(first, second), wanted.flatten(), rtol=1e-5, atol=1e-6)


def test_errors_of_lpips_name_file_option_and_size(weights, tmp_path, monkeypatch):
    small = torch.zeros(1, 3, 31, 40, dtype=torch.uint8)
    assert load_lpips(*weights)(small, small).tolist() == [0]
    with pytest.raises(ValueError, match="LPIPS: expected pictures of at least 31 x 31, got 40 x 30"):
        load_lpips(*weights)(small[:, :, 1:], small[:, :, 1:])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(WeightsError, match=f"AlexNet's weights.*are not there: .*{ALEXNET}, or --alexnet FILE"):
        load_lpips()
    monkeypatch.setattr(metric_weights, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=f"are not there: .*{LPIPS_HEADS}, or --lpips FILE"):
        load_lpips(weights[0])
    with pytest.raises(WeightsError, match="--alexnet: .*alex.pth lacks features.0.weight"):
        load_lpips(weights[1], weights[1])
    with pytest.raises(WeightsError, match="--lpips: .*alexnet.pth lacks lin0.model.1.weight"):
        load_lpips(weights[0], weights[0])
    heads = torch.load(weights[1], weights_only=True)
    torch.save(heads | {"lin1.model.1.weight": torch.zeros(1, 3, 1, 1)}, tmp_path / "vgg.pth")
    with pytest.raises(WeightsError, match=r"--lpips: .*vgg.pth: expected lin1.*\(1, 192, 1, 1\), got \(1, 3, 1, 1\)"):
        load_lpips(weights[0], tmp_path / "vgg.pth")


def test_a_clip_is_a_folder_or_in_the_cache(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").write_text("{}")
    assert find_clip(tmp_path / "snapshot") == tmp_path / "snapshot"
    with pytest.raises(WeightsError, match="--clip: there is no folder .*none with a CLIP"):
        find_clip(tmp_path / "none")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(WeightsError, match=f"{CLIP} is not in Hugging Face's cache .*--clip DIR"):
        find_clip(None)
    found = str(tmp_path / "snapshot" / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: found)
    assert find_clip(None) == tmp_path / "snapshot"
