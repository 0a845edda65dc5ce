"""The photographs are found where they are installed, without importing the package that ships them."""

import subprocess
import sys

import pytest

from lavit.data import load_image, photographs
from lavit.data.photographs import find_photographs


def test_found_photographs_are_real_colour_images():
    found = find_photographs()
    assert found, "scikit-image is a dependency, and it ships photographs"
    assert len({one.name for one in found}) == len(found)
    for one in found:
        picture = load_image(one.path)
        assert min(picture.size) >= 200
        assert len(picture.resize((16, 16)).getcolors(256)) > 50


def test_limit_keeps_the_first():
    assert find_photographs(limit=2) == find_photographs()[:2]


def test_no_package_is_imported():
    code = (
        "import sys; from lavit.data.photographs import find_photographs; find_photographs();"
        "sys.exit(any(name.split('.')[0] in ('skimage', 'sklearn', 'torch') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spec", [None, ValueError])
def test_nothing_installed_gives_nothing(monkeypatch, spec):
    def find_spec(name):
        if spec is not None:
            raise spec(name)

    monkeypatch.setattr(photographs, "find_spec", find_spec)
    assert find_photographs() == []
