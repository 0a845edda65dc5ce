"""Laws of FID: the formula, sums over parts and processes, the file of statistics, and Inception's own numbers."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lavit.evaluation.frechet import Moments, Statistics, distance, load_statistics, save_statistics
from lavit.evaluation.inception import WIDTH, Inception, load_inception, resize_clean, resize_tensorflow
from lavit.evaluation.metric_weights import INCEPTION, WeightsError
from lavit.evaluation.picture_sets import Files, fingerprint, picture_statistics, true_statistics


def statistics(rows):
    moments = Moments(rows.shape[1])
    moments.add(rows)
    return moments.statistics()


def sets(n, width=12):
    first = torch.randn(n, width, dtype=torch.float64) * torch.rand(width, dtype=torch.float64)
    return first, torch.randn(n, width, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("n", [5, 200])  # fewer and more than features: a singular covariance is no special case
def test_distance_is_scipys_formula(n):
    from scipy.linalg import sqrtm

    one, two = sets(n)
    a, b = (np.cov(rows.numpy(), rowvar=False) for rows in (one, two))
    root = np.real(sqrtm(a @ b + 1e-14 * np.eye(12)))
    wanted = float((one.mean(0) - two.mean(0)).square().sum()) + np.trace(a + b - 2 * root)
    # The root of rounding, 1e-16 of the largest value in each of twelve directions.
    assert distance(statistics(one), statistics(two)) == pytest.approx(wanted, rel=1e-5)
    assert distance(statistics(one), statistics(one)) == pytest.approx(0, abs=1e-6)


def test_of_commuting_covariances_it_is_the_distance_of_the_deviations():
    deviations = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 1.0]).double()
    one, two = (Statistics(torch.zeros(3).double(), torch.diag(d * d), 9) for d in deviations)
    assert distance(one, two) == pytest.approx(1 + 0 + 4, rel=1e-12)
    with pytest.raises(ValueError, match="same width, got 3 and 2"):
        distance(one, Statistics(torch.zeros(2), torch.eye(2), 9))


def test_statistics_are_the_mean_and_the_covariance_in_any_parts():
    rows = torch.randn(50, 7)
    parts = Moments(7)
    for part in rows.split(8):
        parts.add(part)
    found = parts.statistics()
    assert found.count == 50
    np.testing.assert_allclose(found.mean, rows.double().mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="two images, got 1"):
        statistics(rows[:1])
    with pytest.raises(ValueError, match=r"features: expected \(n, 7\), got \(50, 6\)"):
        parts.add(rows[:, :6])


# ------------------------------------------------------------------------------------------------------------- the file


def test_a_file_gives_back_what_was_saved_and_takes_those_of_others(tmp_path):
    saved = statistics(torch.randn(9, 4))
    saved = Statistics(saved.mean, saved.covariance, saved.count, {"resize": "clean"})
    save_statistics(tmp_path / "s.npz", saved)
    found = load_statistics(tmp_path / "s.npz")
    assert torch.equal(found.mean, saved.mean) and torch.equal(found.covariance, saved.covariance)
    assert (found.count, found.about) == (9, {"resize": "clean"})
    np.savez(tmp_path / "other.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))  # as clean-fid has it
    other = load_statistics(tmp_path / "other.npz")
    assert other.count == 0 and other.mean.dtype == torch.float64


def test_files_that_are_none_are_refused_and_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").write_text, ("x",)

    np.savez(tmp_path / "trap.npz", mu=np.array([Trap()], dtype=object), sigma=np.eye(1))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(2))
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    np.savez(tmp_path / "nan.npz", mu=np.full(1, np.nan), sigma=np.eye(1))
    np.save(tmp_path / "array.npz", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("x")
    for name in ("trap", "shape", "half", "nan", "array", "text", "none"):
        with pytest.raises(ValueError, match=f"--statistics.*{name}.npz"):
            load_statistics(tmp_path / f"{name}.npz")
    assert not (tmp_path / "sprung").exists()


class Corner(nn.Module):
    """Three features, of the mean colour."""

    num_features = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return torch.stack([image.double().mean((1, 2)) for image in images]) * self.weight


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(7):
        pixels = generator.integers(0, 256, (5, 4 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(7)]


def test_statistics_of_files_are_kept_and_read_again(pictures, tmp_path):
    network, about = Corner(), {"network": "corner", "resize": "clean"}
    pictures[2].write_bytes(b"broken")
    found, lost = true_statistics(network, Files(pictures), tmp_path / "kept.npz", about, batch_size=3)
    assert [item.name for item in lost] == [str(pictures[2])] and found.count == 6
    straight, _ = picture_statistics(network, Files(pictures[:2] + pictures[3:]))
    np.testing.assert_allclose(found.mean, straight.mean, rtol=1e-12)
    for path in pictures:
        path.unlink()
    again, lost = true_statistics(network, Files(pictures), tmp_path / "kept.npz", about)
    assert torch.equal(again.covariance, found.covariance) and lost == []
    with pytest.raises(ValueError, match="kept.npz was made with resize clean, now it is tensorflow"):
        true_statistics(network, Files(pictures), tmp_path / "kept.npz", {**about, "resize": "tensorflow"})


def test_the_fingerprint_is_of_the_weights():
    one, two = Corner(), Corner()
    assert fingerprint(one) == fingerprint(two)
    two.weight.data[1] = 2
    assert fingerprint(one) != fingerprint(two)


# ------------------------------------------------------------------------------------------------------------ Inception


def lively(seed=0):
    """Inception with random weights that let something through."""
    torch.manual_seed(seed)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1)
    return network


def told(network):
    """Fills a network with weights that are the same everywhere."""
    for place, (name, value) in enumerate(sorted(network.state_dict().items())):
        if name.endswith("num_batches_tracked"):
            continue
        wave = torch.cos(0.7 * torch.arange(value.numel(), dtype=torch.float64) ** 1.1 + place).view(value.shape)
        if name.endswith("conv.weight"):
            wave = wave * (6 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            wave = 1 + 0.25 * wave
        else:
            wave = 0.1 * wave
        value.copy_(wave)


GOLDEN = [2.810312, 1.772612, 5.486623, 3.286782, 4.373507, 9.287974, 6.723495, 3.736256]
GOLDEN_NORM = 229.18266


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(lively().state_dict() | {"fc.weight": torch.zeros(1008, WIDTH), "fc.bias": torch.zeros(1008)}, path)
    return path


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_inception_has_the_shape_of_the_published_weights():
    own = Inception().state_dict()
    assert len([name for name in own if name.endswith("conv.weight")]) == 94
    assert sum(value.numel() for name, value in own.items() if name.endswith("conv.weight")) == 21_751_136
    assert own["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert own["Mixed_6e.branch7x7dbl_2.conv.weight"].shape == (192, 192, 7, 1)


def test_features_are_the_numbers_of_torch_fidelity():
    """Of its own network in float64, with these same weights and this image."""
    network = Inception()
    told(network)
    image = (torch.arange(3 * 299 * 299).view(1, 3, 299, 299) * 37 % 251).to(torch.uint8)
    found = network.double()(image)[0]
    # The numbers are rounded to their last digit; cosines of large arguments may differ in float64's last one.
    assert found[::256].tolist() == pytest.approx(GOLDEN, abs=2e-6)
    assert float(found.norm()) == pytest.approx(GOLDEN_NORM, abs=2e-5)


def test_features_are_torch_fidelitys(weights):
    package = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="pip install torch-fidelity")
    wanted = package.FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=str(weights))
    images = noise(2, 3, 40, 57)
    torch.testing.assert_close(load_inception(weights)(images), wanted(images)[0], rtol=1e-4, atol=1e-4)


def test_the_clean_resize_is_clean_fids():
    package = pytest.importorskip("cleanfid.resize", reason="pip install clean-fid")
    image = noise(1, 3, 40, 57)
    wanted = package.build_resizer("clean")(image[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(resize_clean(image)[0].permute(1, 2, 0).numpy(), wanted)


def test_features_do_not_depend_on_the_neighbours_nor_on_other_sizes(weights):
    network = load_inception(weights)
    images = [noise(3, 20, 31), noise(3, 33, 24)]
    together = network(images)
    assert together.shape == (2, WIDTH) and together.dtype == torch.float32 and together.std() > 0
    torch.testing.assert_close(together[1:], network(images[1].unsqueeze(0)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"images: expected \(n, 3, H, W\) uint8, got \(1, 3, 4, 4\) of torch.float32"):
        network(torch.zeros(1, 3, 4, 4))


def test_tensorflows_resize_is_between_the_two_nearest_rows():
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(1, 3, 4, 1) * 10
    rows = resize_tensorflow(image)[0, 0, :, 0]
    places = torch.arange(299) * 4 / 299
    torch.testing.assert_close(rows, (places * 10).clamp(max=30), rtol=0, atol=1e-4)
    assert torch.equal(resize_tensorflow(noise(1, 3, 299, 299)).frac(), torch.zeros(1, 3, 299, 299))


def test_the_clean_resize_filters_before_it_takes_fewer_pixels():
    stripes = torch.zeros(1, 3, 1196, 1196, dtype=torch.uint8)
    stripes[..., ::2] = 200
    clean, plain = resize_clean(stripes), resize_tensorflow(stripes)
    assert (clean[..., 5:-5] - 100).abs().max() < 1 and (plain == 200).all()
    assert resize_clean(noise(2, 3, 9, 9)).amin() >= 0 and resize_clean(noise(2, 3, 9, 9)).amax() <= 255


def test_weights_that_are_absent_or_not_these_are_told_with_option_and_file(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=rf"Inception are not there: .*{INCEPTION}, or --inception FILE"):
        load_inception()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / INCEPTION).write_bytes(weights.read_bytes())
    assert fingerprint(load_inception()) == fingerprint(load_inception(weights))
    state = torch.load(weights, weights_only=True)
    name = "Mixed_6a.branch3x3.conv.weight"
    torch.save(state | {name: torch.zeros(1)}, tmp_path / "shape.pth")
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "less.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    with zipfile.ZipFile(tmp_path / "inception-2015-12-05.pt", "w") as archive:
        archive.writestr("inception/code/__torch__.py", "")
    cases = {"shape.pth": r"expected Mixed_6a.*\(384, 288, 3, 3\), got \(1,\)", "less.pth": f"lacks {name}"}
    cases |= {"list.pth": "holds no tensors by name", "cut.pth": "cannot be read", "none.pth": "the weights of"}
    cases |= {"inception-2015-12-05.pt": "is a TorchScript archive, which is a program"}
    for file, reason in cases.items():
        with pytest.raises(WeightsError, match=f"--inception: .*{file}.*{reason}"):
            load_inception(tmp_path / file)


def test_weights_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").write_text, ("x",)

    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="trap.pth cannot be read as weights alone"):
        load_inception(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_safetensors_are_read_as_well(weights, tmp_path):
    from safetensors.torch import save_file

    save_file(torch.load(weights, weights_only=True), tmp_path / "i.safetensors")
    assert fingerprint(load_inception(tmp_path / "i.safetensors")) == fingerprint(load_inception(weights))
    (tmp_path / "b.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match="b.safetensors cannot be read"):
        load_inception(tmp_path / "b.safetensors")
