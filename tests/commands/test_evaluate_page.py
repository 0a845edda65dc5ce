"""The page and the help of `lavit evaluate`: every command on the page is one that the options take."""

import re
import shlex
from pathlib import Path

import pytest

from lavit.commands.evaluation_options import TASKS, parse

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_can_be_given():
    block = "\n".join(re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)).replace("\\\n", " ")
    commands = [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]
    assert len(commands) == 8
    for words in commands:
        assert words[:2] == ["lavit", "evaluate"]
        options = parse(words[2:])
        assert options.output


def test_every_option_of_the_page_exists(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    told = capsys.readouterr().out
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert len(named) > 8 and [option for option in named if option not in told] == []
    assert all(f"  {task} " in told for task in TASKS if task != "edit")
    assert max(map(len, told.splitlines())) <= 120
