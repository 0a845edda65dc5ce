"""A benchmark's figure is kept only with a right result; its memory is what one run held at once."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.table import Case, comparison, main, text
from benchmarks.timing import measure, peak_bytes

CPU = torch.device("cpu")


def case(name: str, median: float, **extra) -> Case:
    return Case("search", name, median, (median / 2, median * 2), extra)


class Recorder:
    """pytest-benchmark's fixture as far as ``measure`` needs it, without its report."""

    stats = None

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}
        self.rounds = 0

    def pedantic(self, step, warmup_rounds: int, rounds: int, iterations: int) -> None:
        self.rounds = rounds
        for _ in range((warmup_rounds + rounds) * iterations):
            step()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_peak_memory_is_the_most_that_one_run_holds_at_once():
    def run() -> torch.Tensor:
        for _ in range(3):
            held = torch.ones(1000)
            del held
        return torch.ones(500)

    assert peak_bytes(run, CPU) == 4000


@pytest.mark.gpu
def test_peak_memory_on_a_gpu_leaves_out_what_was_held_before():
    device = torch.device("cuda")
    held = torch.ones(1 << 20, device=device)
    assert peak_bytes(lambda: held[: 1 << 18] + 1, device) == 1 << 20


@pytest.mark.gpu
def test_a_run_that_waits_for_the_device_is_timed_without_a_graph(recorder):
    x = torch.ones(1000, device="cuda")
    measure(recorder, x.device, "sum", lambda: x.sum().item())
    assert recorder.extra_info["timed"].startswith("eager, since")
    torch.rand(3, device="cuda")


@pytest.mark.gpu
def test_a_run_that_does_not_wait_is_timed_in_a_graph(recorder):
    x = torch.ones(1000, device="cuda")
    measure(recorder, x.device, "sum", lambda: x.sum(), scores=1000)
    assert recorder.extra_info["timed"] == "graph"


def test_a_wrong_result_has_no_figure(recorder):
    with pytest.raises(AssertionError, match="search, quick: wrong result"):
        measure(recorder, CPU, "search", lambda: None, implementation="quick", passed=False, parity="other ids")
    assert recorder.rounds == 0
    measure(recorder, CPU, "search", lambda: None, passed=False, approximate=True, parity={"disagreement": 0.1})
    assert recorder.rounds > 0 and recorder.extra_info["passed"] is False


def test_a_ratio_is_told_only_where_parity_held():
    release = case("release", 1.0, baseline=True, passed=True)
    right, wrong = case("right", 0.25, passed=True), case("fast", 0.1, passed=False, parity={"disagreement": 0.02})
    group = [release, right, wrong]
    assert comparison(right, group) == "4×"
    assert comparison(wrong, group) == "no parity, no ratio: disagreement 0.02"
    assert comparison(right, [case("release", 1.0, baseline=True, passed=False), right]) == "no parity of the baseline"
    assert "no ratio" in text(group) and "10×" not in text(group)


def test_the_markdown_table_comes_from_pytests_file(tmp_path, capsys):
    entry = {
        "group": "search",
        "name": "bench[x]",
        "param": "x",
        "extra_info": {
            "implementation": "release",
            "baseline": True,
            "passed": True,
            "peak_bytes": 2_500_000,
            "tokens_per_second": 1234.5,
            "fill_rate": 0.5,
        },
        "stats": {"median": 2e-3, "q1": 1e-3, "q3": 3e-3},
    }
    machine = {"device": "a GPU", "driver": "1.2", "threads": 2, "torch": "3", "triton": "4"}
    report = {"machine_info": machine, "commit_info": {"id": "abc"}, "benchmarks": [entry]}
    (tmp_path / "run.json").write_text(json.dumps(report))
    assert main([str(tmp_path / "run.json")]) == 0
    printed = capsys.readouterr().out
    assert "a GPU, driver 1.2, 2 threads, torch 3, triton 4, commit abc" in printed
    assert "| release | 2 ms | 1 ms to 3 ms | 1.23e+03 tokens/s, 50 % full | 2.5 MB | 1 (baseline) |" in printed
