"""The command line: right command, right exit code, one line for an expected error."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import pytest

from lavit import __version__
from lavit.cli import BARS, COMMANDS, NOISE, RENAMED, Command, main, without_noise


@pytest.fixture
def command(monkeypatch):
    """Puts a function in the place of `lavit info`."""

    def install(function):
        module = types.ModuleType("lavit_test_command")
        module.main = function
        monkeypatch.setitem(sys.modules, "lavit_test_command", module)
        monkeypatch.setitem(COMMANDS, "info", Command("lavit_test_command:main", "for the test"))

    return install


def error_line(capsys):
    captured = capsys.readouterr()
    lines = captured.err.strip().split("\n")
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


def test_arguments_reach_the_command_and_its_code_comes_back(command):
    seen = []
    command(lambda argv: seen.append(argv))
    assert main(["info", "--help", "a b", "-x"]) == 0
    assert seen == [["--help", "a b", "-x"]]
    command(lambda argv: 1)
    assert main(["info"]) == 1


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("keep: expected this,\n  got that"), "lavit: error: keep: expected this, got that"),
        (PermissionError(13, "Permission denied", "a.yaml"), "lavit: error: a.yaml: Permission denied"),
        (FileNotFoundError("path: no folder b"), "lavit: error: path: no folder b"),
        (ModuleNotFoundError("No module named 'lavit_x'"), "lavit: error: No module named 'lavit_x'"),
        (ValueError(), "lavit: error: ValueError"),
    ],
)
def test_expected_error_is_one_line_and_code_2(command, capsys, monkeypatch, error, line):
    def fail(argv):
        raise error

    command(fail)
    monkeypatch.delenv("LAVIT_DEBUG", raising=False)
    assert main(["info"]) == 2
    assert error_line(capsys) == line
    monkeypatch.setenv("LAVIT_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["info"])


def test_bug_is_not_hidden(command):
    def fail(argv):
        raise AssertionError

    command(fail)
    with pytest.raises(AssertionError):
        main(["info"])


def test_interruption_is_130(command, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    command(interrupt)
    assert main(["info"]) == 130
    assert error_line(capsys) == "lavit: interrupted"


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["tokenise"], ["'tokenise'", "did you mean 'tokenize'?"]),
        (["train", "tokeniser"], ["lavit train:", "did you mean 'tokenizer'?"]),
        (["xyzzy"], ["'xyzzy'", ", ".join(COMMANDS)]),
    ],
)
def test_unknown_command_suggests_the_nearest(argv, parts, capsys):
    assert main(argv) == 2
    line = error_line(capsys)
    assert all(part in line for part in parts)
    assert ("did you mean" in line) == (argv != ["xyzzy"])


def test_help_and_version(capsys):
    for argv, expected in ((["--help"], "quickstart"), (["train", "--help"], "stage 1"), (["--version"], __version__)):
        with pytest.raises(SystemExit) as exit:
            main(argv)
        assert exit.value.code == 0
        assert expected in capsys.readouterr().out
    for argv in ([], ["train"]):
        assert main(argv) == 2
        assert "commands:" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main(["--verion"])
    assert exit.value.code == 2


def test_help_loads_no_model_code():
    code = "import sys, lavit.cli; lavit.cli.main([]); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_command_begins_without_warnings_of_packages():
    """diffusers, torchao and torch have some for each other."""
    program = (
        "from lavit.cli import main, without_noise; main(['info'])\n"
        "with without_noise(): import lavit.pixels; lavit.pixels.LaVITPixelPipeline"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "torchao" not in done.stderr and "pytree" not in done.stderr


def test_what_packages_say_of_each_other_is_not_heard_and_all_else_is(command, caplog):
    def noisy(argv):
        for name, words in NOISE.items():
            logging.getLogger(name).warning("%s and more", words)
            logging.getLogger(name).warning("other words")
        for words in RENAMED:
            warnings.warn(f"{words} and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("`other` is deprecated", FutureWarning, stacklevel=1)

    command(noisy)
    with pytest.warns(FutureWarning) as heard:
        assert main(["info"]) == 0
    assert [str(warning.message) for warning in heard] == ["`other` is deprecated"]
    assert {record.getMessage() for record in caplog.records} == {"other words"}


def test_what_a_command_sets_is_as_before_when_it_has_ended(command, monkeypatch):
    seen, filters = [], [list(logging.getLogger(name).filters) for name in NOISE]

    def inner(argv):
        with without_noise():
            pass
        seen.append((os.environ[BARS], [len(logging.getLogger(name).filters) for name in NOISE]))

    command(inner)
    for before in (None, "0"):
        monkeypatch.delenv(BARS, raising=False)
        if before is not None:
            monkeypatch.setenv(BARS, before)
        assert main(["info"]) == 0
        assert os.environ.get(BARS) == before
        assert [logging.getLogger(name).filters for name in NOISE] == filters
    more = [len(own) + 1 for own in filters]
    assert seen == [("1", more), ("0", more)]


def test_a_command_draws_no_bars_for_files():
    program = (
        f"import sys, tempfile; sys.path.append({str(Path(__file__).parent / 'helpers')!r})\n"
        "from lavit.cli import without_noise\n"
        "with without_noise():\n"
        " from lavit.tokenizer import *; from tiny_tokenizer import TINY; folder = tempfile.mkdtemp()\n"
        " LaVITTokenizer(LaVITTokenizerConfig.preset('small', **TINY)).save_pretrained(folder)\n"
        " LaVITTokenizer.from_pretrained(folder)"
    )
    environ = {name: value for name, value in os.environ.items() if name != BARS}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
    assert "it/s]" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
def test_sigterm_ends_a_command_as_an_interruption_does(command, capsys):
    cleaned = []

    def work(argv):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    command(work)
    assert main(["info"]) == 143
    assert error_line(capsys) == "lavit: terminated" and cleaned
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGTERM, lambda *_: cleaned.append("theirs"))
    try:
        command(lambda argv: os.kill(os.getpid(), signal.SIGTERM))
        assert main(["info"]) == 0 and cleaned == [True, "theirs"]  # whoever calls may have made something else of it
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name != "posix", reason="pipes as on POSIX")
def test_reader_that_goes_away_is_no_error():
    code = (
        "import sys, types; from lavit import cli; module = types.ModuleType('many');"
        "module.main = lambda argv: [print(i) for i in range(100000)] and 0; sys.modules['many'] = module;"
        "cli.COMMANDS['info'] = cli.Command('many:main', ''); sys.exit(cli.main(['info']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
