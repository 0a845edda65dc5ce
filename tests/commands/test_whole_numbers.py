"""Options that count or seed: a fraction is refused by name, before any work, and not cut to a whole number."""

from collections.abc import Callable

import pytest

from lavit.commands import evaluate, generate, reconstruct, tokenize
from lavit.quickstart import command as quickstart

OPTIONS = {
    evaluate.main: ["seed", "limit", "beams", "min-new", "max-new", "top-k", "probe-scenes", "batch-size"],
    generate.main: ["seed", "samples", "top-k", "min-tokens", "steps", "batch-size"],
    reconstruct.main: ["seed", "steps", "batch-size", "workers"],
    tokenize.main: ["seed", "batch-size", "workers"],
    quickstart.main: ["seed"],
}


@pytest.mark.parametrize("main, option", [(main, option) for main, options in OPTIONS.items() for option in options])
@pytest.mark.parametrize("value", ["1.5", "2.0", "1e3"])
def test_a_fraction_is_refused_by_the_options_name(
    main: Callable[..., int], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([f"--{option}", value])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and f"argument --{option}: " in told and value in told.splitlines()[-1]
    assert "_seed" not in told
