"""The pages for contributors name only what there is: paths, commands, places to paste an example, this version."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lavit import __version__
from lavit.cli import COMMANDS, Command

ROOT = Path(__file__).parent.parent
PAGES = ["ARCHITECTURE.md", "CONTRIBUTING.md"]
MARKER = re.compile(r"^<!-- (file|insert|before|replace): (\S+?)(?:: (.*?))? -->\n```python\n(.*?)^```$", re.M | re.S)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def outside_code(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", page(name), flags=re.M | re.S)


def prose(name: str) -> list[str]:
    """What stands in backticks outside of code blocks."""
    return re.findall(r"`([^`\n]+)`", outside_code(name))


def examples(name: str) -> set[str]:
    """Paths that a page itself asks to create, and the folders of these."""
    files = {Path(path) for kind, path, _, _ in MARKER.findall(page(name)) if kind == "file"}
    return {str(path) for file in files for path in (file, file.parent)}


def commands(name: str) -> list[list[str]]:
    """The words of each command in a page's shell blocks and backticks; a line that ends in "# example" is none."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", page(name), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if "# example" not in line]
    lines += [text for text in prose(name) if text.startswith(("lavit ", "python -m ", ".ci/"))]
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]


def is_path(word: str) -> bool:
    return re.fullmatch(r"[\w.-]*(/[\w.*-]*)+|[\w-]+\.(py|toml|cpp|cu|h|sh)", word) is not None


@pytest.mark.parametrize("name", PAGES)
def test_every_path_exists_or_is_an_example(name):
    paths = [word for word in prose(name) if is_path(word)]
    names = {path.name for folder in ("kernels", "lavit") for path in (ROOT / folder).rglob("*")}
    known = examples(name)
    missing = [
        path
        for path in paths
        if not (ROOT / path).exists() and path.rstrip("/") not in known and path.rstrip("/") not in names
    ]
    assert len(paths) > 20 and missing == []


@pytest.mark.parametrize("name", PAGES)
def test_every_command_exists(name):
    found = [words for words in commands(name) if words]
    assert len(found) >= (2 if name == "ARCHITECTURE.md" else 15)
    for program, *words in found:
        while re.fullmatch(r"[A-Z_]+=\S*", program):
            program, *words = words
        program = program.removeprefix(".venv/bin/")
        if program.startswith("python"):
            if words[0] == "-m":
                assert importlib.util.find_spec(words[1]) is not None, words
            else:
                assert (ROOT / words[0]).is_file(), words
            words = words[2:] if words[0] == "-m" else words[1:]
        elif program == "lavit":
            level = COMMANDS
            for word in words:
                if isinstance(level, Command) or word.isupper():
                    break
                assert word in level, f"lavit {' '.join(words)}"
                level = level[word]
        elif "/" in program:
            assert os.access(ROOT / program, os.X_OK), program
        else:
            assert program in ("pip", "pytest", "ruff", "mypy", "lint-imports", "pre-commit"), program
        if program.startswith(("python", "pytest")):
            for path in (word for word in words if word.startswith(("tests/", "benchmarks/"))):
                assert list(ROOT.glob(path)), path


def test_the_examples_can_be_pasted():
    parts = MARKER.findall(page("CONTRIBUTING.md"))
    assert len(parts) == page("CONTRIBUTING.md").count("```python\n") > 10
    for kind, path, anchor, code in parts:
        if kind == "file":
            compile(code, path, "exec")
            assert not (ROOT / path).exists(), f"{path}: is there, and so no example any more"
        else:
            lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
            assert kind == "insert" or sum(line.startswith(anchor) for line in lines) == 1, (path, anchor)
            assert not set(code.splitlines()) & set(lines), f"{path}: has the example's lines already"


def test_tests_are_run_as_the_readme_says():
    command = re.search(r"<!-- tests -->\n```bash\n(.*?)\n```", page("README.md"))
    assert command is not None and command[1] in page("CONTRIBUTING.md")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", *PAGES])
def test_links_between_pages_lead_somewhere(name):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", outside_code(name))
    assert targets or name == "ARCHITECTURE.md"
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_architecture_is_one_screen():
    assert len(page("ARCHITECTURE.md").splitlines()) <= 60


def test_the_changelog_has_this_version():
    sections = re.findall(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", page("CHANGELOG.md"), re.M)
    assert sections[0] == ("Unreleased", "") and dict(sections)[__version__]


def test_the_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load(page("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "preferred-citation", "references"} <= set(citation)
    assert citation["version"] == __version__ and "license" not in citation
    papers = {paper["url"].rpartition("/")[2] for paper in citation["references"]}
    assert papers == {"2309.04669", "2307.08041"}
