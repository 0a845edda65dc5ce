"""The installation: what the build asks for, what it says without a compiler, and what importing costs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def torch_of_version(folder: Path, version: str) -> str:
    info = folder / f"torch-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return str(folder)


@pytest.mark.parametrize(
    "version, wanted",
    [("2.13.0+cpu", []), ("2.10.0", []), ("3.0.1", []), ("2.9.1", ["torch>=2.10"]), (None, ["torch>=2.10"])],
)
def test_torch_is_asked_for_only_where_none_fits(tmp_path, monkeypatch, version, wanted):
    pytest.importorskip("setuptools")
    backend = load("_build/lavit_backend.py")
    path = str(tmp_path) if version is None else torch_of_version(tmp_path / "site", version)
    monkeypatch.setattr(backend, "target_path", lambda: [path])
    monkeypatch.chdir(ROOT)
    assert backend._torch_if_missing() == wanted


def test_the_target_environment_is_seen_through_pips_isolation(tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = load("_build/lavit_backend.py").target_path()
    assert str(tmp_path) not in path
    assert any(Path(entry, "torch").is_dir() for entry in path)


def test_architectures_become_flags(monkeypatch):
    pytest.importorskip("setuptools")
    build = load("setup.py")
    assert build.gencode(["8.0", "9.0a+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    with pytest.raises(build.BuildError, match="TORCH_CUDA_ARCH_LIST: expected entries like 9.0 .* got 'Hopper'"):
        build.gencode(["Hopper"])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6;9.0+PTX")
    assert build.architectures() == ["8.6", "9.0+PTX"]
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setattr(build, "machine_architectures", lambda: "")
    assert build.architectures() == ["8.0", "9.0+PTX"]


@pytest.mark.parametrize("mode, code", [("auto", 0), ("require", 1)])
def test_without_a_compiler_one_line_says_so(tmp_path, mode, code):
    pytest.importorskip("setuptools")
    for name in ("setup.py", "pyproject.toml", "README.md", "_build", "csrc"):
        if (ROOT / name).exists():
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "lavit").mkdir()
    shutil.copy(ROOT / "lavit/__init__.py", tmp_path / "lavit/__init__.py")
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CC")}
    environment |= {"PATH": str(tmp_path), "LAVIT_BUILD": mode}
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("lavit:")]
    assert lines == ["lavit: no C++ compiler found, installing pure Python: everything works, packing is slower"]
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("arguments, where", [(["--inplace"], "lavit"), (["--build-lib", "out"], "out/lavit")])
def test_the_library_is_built_where_it_is_looked_for(tmp_path, arguments, where):
    """With a stand-in for the sources, so that it takes no time."""
    pytest.importorskip("setuptools")
    for name in ("setup.py", "pyproject.toml", "_build"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").touch()
    for folder in ("lavit", "csrc/cpu"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "lavit/__init__.py", tmp_path / "lavit/__init__.py")
    (tmp_path / "csrc/library.cpp").write_text("int nothing() { return 0; }")
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *arguments],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "LAVIT_BUILD": "cpu"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "lavit: built C++ kernels" in result.stderr
    from lavit.kernels.extension import LIBRARY

    assert (tmp_path / where / LIBRARY).is_file()


def test_import_is_light():
    code = "import sys, lavit; print([m for m in ('torch', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    assert python(code) == "[]"


def test_public_names_exist():
    assert python("import lavit; print([n for n in lavit.__all__ if getattr(lavit, n, None) is None])") == "[]"


def test_an_unknown_name_is_an_attribute_error():
    import lavit

    with pytest.raises(AttributeError, match="module 'lavit' has no attribute 'Nothing'"):
        _ = lavit.Nothing


def test_transformers_does_not_take_our_kernels_for_the_hub_package():
    """From the repository root the folder kernels/ is importable; transformers looks for a package of that name."""
    code = (
        "from transformers import PreTrainedModel; from transformers.utils import is_kernels_available; "
        "print(is_kernels_available())"
    )
    assert python(code) == "False"


def test_no_top_level_kernels_is_installed():
    try:
        installed = distribution("lavit")
    except PackageNotFoundError:
        pytest.skip("lavit is not installed here")
    assert (installed.read_text("top_level.txt") or "").split() == ["lavit"]


def test_a_missing_library_is_explained(monkeypatch):
    from lavit.kernels import extension

    extension.extension.cache_clear()
    try:
        monkeypatch.setattr(extension, "library_path", lambda: None)
        assert extension.extension().devices == ()
        assert "lavit._C is not built" in str(extension.cpp_unusable("cpu"))
    finally:
        monkeypatch.undo()
        extension.extension.cache_clear()


def test_a_library_that_does_not_load_is_explained(monkeypatch, tmp_path):
    from lavit.kernels import extension

    broken = tmp_path / "_C.abi3.so"
    broken.write_bytes(b"no library")
    extension.extension.cache_clear()
    try:
        monkeypatch.setattr(extension, "library_path", lambda: broken)
        assert "_C.abi3.so does not load with torch" in str(extension.cpp_unusable("cpu"))
    finally:
        monkeypatch.undo()
        extension.extension.cache_clear()
