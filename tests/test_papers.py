"""The papers' short runs end, and come out as they did; the table over all is up to date."""

from __future__ import annotations

import importlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import evenhand as eh
from evenhand.data import Stream, celeba
from evenhand.schedules import mixed_seed
from evenhand.training.flops import Meter

PAPERS = Path(__file__).parent.parent / "papers"


def finished(script: Path, *options: str | Path) -> None:
    """Run a script; no warning and no failure is let pass."""
    command = [sys.executable, "-W", "error", script, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def quick(paper: str, out: Path, *figures: str) -> dict[str, dict[str, Any]]:
    """Rows of each experiment, {row: {quantity: [mean, std, n]}}, of the paper's short run."""
    script = PAPERS / paper / "reproduce.py"
    finished(script, "--quick", "--workers", "1", "--out", out)
    for name in figures:
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    result = json.loads((out / "result.json").read_text())
    return {name: found["rows"] for name, found in result["experiments"].items()}


@pytest.fixture
def module(monkeypatch) -> Iterator[Callable[..., ModuleType]]:
    """(name, paper, if it is one's) -> a module of the papers, as their scripts import it."""
    before = set(sys.modules)

    def load(name: str, paper: str = "") -> ModuleType:
        monkeypatch.setattr(sys, "path", [str(PAPERS / paper), str(PAPERS), *sys.path])
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:  # several papers have modules of one name
        if str(PAPERS) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def test_nakamura2022(tmp_path) -> None:
    name = "AND/XOR, one initialisation"
    rows = quick("nakamura2022", tmp_path, "figure6")[name]
    expected = json.loads((PAPERS / "nakamura2022" / "expected.json").read_text())
    printed = expected["experiments"][name]["rows"]
    for row in ("Single AND", "Central", "Central + tension"):
        assert rows[row]["c=10 converged %"][0] == printed[row]["c=10 converged %"][0] == 100
        epochs, deviation = printed[row]["c=10 epochs"]
        assert abs(rows[row]["c=10 epochs"][0] - epochs) < 3 * deviation
    assert rows["Central + tension"]["c=10 epochs"][0] < rows["Central"]["c=10 epochs"][0]


def test_bellavia2026(tmp_path) -> None:
    drawn = (
        "figure2-data",
        "quadrants-loss-0.1",
        "quadrants-rate",
        "signals-loss-0.1",
        "signals-rate",
    )
    tables = quick("bellavia2026", tmp_path, *drawn)
    for rows in tables.values():
        every, tenth, hundredth, plain = (
            {quantity: mean for quantity, (mean, *_) in row.items() if "seconds" not in quantity}
            for row in rows.values()
        )
        # In two epochs the heads have had a turn only where turns change after one.
        assert tenth == hundredth
        assert every != tenth != plain
        assert all(0 <= recall <= 1 for quantity, recall in plain.items() if "recall" in quantity)


def test_pascal2021(tmp_path) -> None:
    (rows,) = quick("pascal2021", tmp_path, "paths").values()
    assert {"sus", "ius", "io", "ius-groups", "io-groups"} < set(rows)
    assert all(row["path"][0] > 0 and 0 <= row["mean accuracy"][0] <= 1 for row in rows.values())
    # One step of the sum and one of the mean move Adam alike.
    assert abs(rows["sus"]["path"][0] / rows["uniform"]["path"][0] - 1) < 0.01
    assert rows["io"]["path"][0] > rows["ius"]["path"][0]


def test_sener2018(tmp_path) -> None:
    (rows,) = quick("sener2018", tmp_path, "min-norm", "pareto-front").values()
    assert list(rows) == ["3 tasks", "3 tasks, decoders of 8 channels"]
    exact, bound = (rows["3 tasks"][name] for name in ("MGDA, ms", "MGDA-UB, ms"))
    ratio = rows["3 tasks"]["MGDA / MGDA-UB"]
    for middle, spread, rounds in (exact, bound, ratio):
        assert rounds == 2
        assert 0 <= spread < 2 * middle  # two values differ by √2 spreads, and are above zero
    # With two rounds a median is a mean, and lies between what each round says.
    assert exact[0] / bound[0] == pytest.approx(ratio[0], abs=ratio[1])


def convolutional() -> tuple[nn.Module, int]:
    """A trunk for CelebA's pictures, 16 features, that takes little time."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
    return nn.Sequential(nn.AvgPool2d(4), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 16


def test_sener2018_times_one_trunk_pass_beside_one_for_each_task(monkeypatch) -> None:
    """What is timed, in operations: a forward pass, and m or one backward passes of the trunk."""
    monkeypatch.syspath_prepend(PAPERS / "sener2018")
    monkeypatch.setattr(celeba, "resnet18", convolutional)
    timing = importlib.import_module("timing")
    with Meter() as forward:
        features = convolutional()[0](torch.randn(2, 3, celeba.SIDE, celeba.SIDE))
    with Meter() as backward:
        features.sum().backward()
    for tasks in (1, 3):
        for at, passes in (("parameters", tasks), ("representation", 1)):
            take = timing.linear(tasks, 2)[at]
            with Meter() as meter:
                take()
            expected = forward.total + passes * backward.total
            assert meter.total == pytest.approx(expected, rel=0.01), (at, tasks)


def test_sener2018_tables_the_medians_of_the_rounds(monkeypatch) -> None:
    monkeypatch.syspath_prepend(PAPERS / "sener2018")
    timing = importlib.import_module("timing")
    times = {"parameters": [6.0, 9.0, 30.0], "representation": [2.0, 9.0, 3.0]}
    row = timing.rows({40: times})["40 tasks"]
    assert {name: values[0] for name, values in row.items()} == {
        "MGDA, ms": 9.0,
        "MGDA-UB, ms": 3.0,
        "MGDA / MGDA-UB": 3.0,
    }
    assert row["MGDA-UB, ms"][1] == pytest.approx(statistics.stdev([2.0, 9.0, 3.0]))
    assert row["MGDA, ms"][2] == 3


def test_the_table_over_all_papers_is_up_to_date() -> None:
    finished(PAPERS / "table.py", "--check")


def test_sizes_are_those_that_can_make_the_printed_digits(module) -> None:
    sizes = module("sizes", "bellavia2026")
    # 0.5 and 0.25 as means of 11 recalls: 11 n must be a multiple of 4.
    assert sizes.sizes([Fraction(1, 2), Fraction(1, 4)], range(1, 13)) == [4, 8, 12]
    # 1/3 to six digits, of 11 · 3 = 33 answers: 11/33 rounds to it, no k/22 does.
    assert sizes.fits(Fraction(333_333, 10**6), 3)
    assert not sizes.fits(Fraction(333_333, 10**6), 2)
    kept = json.loads((PAPERS / "bellavia2026" / "sizes.json").read_text())
    assert kept == sizes.derived()
    assert kept["Wireless signals, RadCom over-the-air"]["test sizes"] == [18_900, 37_800]


def test_every_printed_number_of_bellavia_is_there() -> None:
    expected = json.loads((PAPERS / "bellavia2026" / "expected.json").read_text())["experiments"]
    assert [sum(map(len, e["rows"].values())) for e in expected.values()] == [48, 48]
    for experiment in expected.values():
        for row in experiment["rows"].values():
            tasks = {quantity.split()[0] for quantity in row}
            assert len(tasks) == 2
            for task in tasks:  # F1 is near the mean of the two; a digit mistyped is not
                precision, recall, f1 = (
                    row[f"{task} {q}"][0] for q in ("precision", "recall", "F1")
                )
                assert abs(f1 - (precision + recall) / 2) < 0.0025


def test_alpha_alone_meets_all_four_tension_rows(module, tmp_path) -> None:
    alpha = module("alpha", "nakamura2022")
    runs = PAPERS / "nakamura2022" / "runs.jsonl"
    (tmp_path / "runs.jsonl").write_text(runs.read_text())
    found = alpha.sum_up(alpha.Ledger(tmp_path))
    counts = alpha.met(found)
    assert set(counts) == set(alpha.ALPHAS)
    assert [a for a, number in counts.items() if number == 4] == [0.17, 0.18]
    assert counts[0.3] == 2
    assert alpha.draw(found, tmp_path).stat().st_size > 10_000


def test_what_any_epoch_of_table_3_comes_to(module) -> None:
    table3 = module("table3", "nakamura2022")
    first = {"upper": [0.9, 0.80, 0.86], "lower": [0.035, 0.039, 0.045]}  # epoch 0 does not count
    then = {"upper": [0.1, 0.60, 0.87], "lower": [0.100, 0.031, 0.090]}
    runs = [("Central", {"curves": curves}) for curves in (first, then)]
    runs.append(("Single upper", {"curves": {"upper": [0.99, 0.5, 0.7]}}))
    found = {"Central": {}, "Single task": {}}
    table3.reach(found, runs, {"Central": {"accuracy": [0.9, 0.05], "MSE": [0.035, 0.005]}})
    central, alone = (list(found[row].values()) for row in ("Central", "Single task"))
    # The nearest epoch is the first of the first run or its second: 2 ± off in one of the two.
    # With the printed MSE are the first epochs of both, with the printed accuracy the second ones.
    assert [value for value, *_ in central] == pytest.approx([0.87, 0.031, 2.0, 0.80, 0.090])
    assert alone == [[0.7, None, 1]]


def test_how_runs_of_table_3_ended(module) -> None:
    runs = [{"epochs": 20, "best epoch": 10}, {"epochs": 100, "best epoch": 90}]
    runs += [{"epochs": 100, "best epoch": 91}, {"epochs": 77, "best epoch": 70, "cut": True}]
    told = module("table3", "nakamura2022").ended([*runs, {"diverged": "the loss"}])
    assert told == (
        "Of 5 runs ended 2 by the rule, 1 by the clock after 77 epochs, 1 by diverging, "
        "1 at the cap."
    )


@pytest.mark.parametrize(
    ("printed", "ours", "grade", "told"),
    [
        ([10.0, 1.0], [10.9, 0.1, 5], "inside", "inside ±"),
        ([10.0, 1.0], [12.0, 9.0, 5], "outside", "+20 %, 2 ±"),
        ([10.0, None], [10.1, 0.2, 5], "within ours", "+1 %, within ours"),
        ([10.0, None], [10.1, 0.05, 5], "not within ours", "+1 %, 2 of our ±"),
        ([10.0, None], [10.1, None, 1], "not within ours", "+1 %"),
        ([100, None], [100, None, 50], "both 100 %", "both 100 %"),
        ([46, None], [44, None, 50], "not within ours", "-4.3 %"),
    ],
)
def test_where_no_spread_is_printed_nothing_is_inside_it(
    module, printed, ours, grade, told
) -> None:
    table = module("table")
    assert table._grade("c=1 converged %", printed, ours) == grade
    assert table._agreement("c=1 converged %", printed, ours) == told


def test_the_time_of_a_card_is_not_told_as_a_cores(module, tmp_path) -> None:
    ledger = module("ledger").Ledger(tmp_path)
    for number, card in enumerate(("H200", "CPU", "H100")):
        ledger.add("stacks", {"number": number}, {"device": card}, 80.0)
    ledger.add("runs", {}, {}, 30.0)
    ledger.write("as stacks", {}, "a paper", made_as="stacks")
    ledger.write("runs", {}, "a paper")
    found = json.loads((tmp_path / "result.json").read_text())["experiments"]
    told = [module("table")._took(found[name], "one core") for name in ("as stacks", "runs")]
    assert told == ["4 minutes of H100 and H200", "30 seconds of one core"]


def test_two_studies_may_write_to_one_folder(module, tmp_path) -> None:
    ledgers = [module("ledger").Ledger(tmp_path) for _ in range(2)]

    def add(study: int) -> None:
        for k in range(20):
            ledgers[study].add("x", {"study": study, "k": k}, {"value": k}, 0.0)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add, range(2)))
    assert len(module("ledger").Ledger(tmp_path).found("x")) == 40


def test_the_untrained_network_is_no_candidate_where_a_protocol_has_none(module) -> None:
    stopping = module("best").Trained(patience=2)
    assert not stopping.improved(0.0)  # before training: neither kept nor counted
    assert stopping.improved(5.0)
    again = module("best").Trained(patience=2)
    again.load_state_dict(stopping.state_dict())
    assert not again.improved(6.0)
    assert not again.exhausted
    assert not again.improved(5.0)
    assert again.exhausted


# On a GPU: tried here on the CPU with tiny sizes ----------------------------------------------


def test_a_stack_of_runs_says_what_the_runs_say(module, tmp_path) -> None:
    stacks, alternation = module("stacks", "bellavia2026"), module("alternation", "bellavia2026")
    cells = alternation.cells("quadrants", (1e-1, 1e-2), 1, epochs=3, samples=300)
    mine = [[c for c in cells if c["method"] == name] for name in ("ATE-SG, E = 1", "SG")]
    whole = [stacks.Members(of, "cpu") for of in mine]
    assert stacks.run(whole, math.inf)
    found = [values for stack in whole for values in stack.values(1.0)]
    for cell, values in zip((c for of in mine for c in of), found, strict=True):
        alone = alternation.run(cell)
        for curve in ("validation", "training", "rate"):
            assert values[curve] == pytest.approx(alone[curve], rel=1e-3)
        assert values["best epoch"] == alone["best epoch"]
        for task, scores in alone["test"].items():
            assert values["test"][task] == pytest.approx(scores, abs=2e-3)
    begun = [stacks.Members([{**cell, "epochs": 1} for cell in of], "cpu") for of in mine]
    assert stacks.run(begun, math.inf)
    again = [stacks.Members(of, "cpu") for of in mine]
    for stack, state in zip(again, begun, strict=True):
        stack.load_state_dict(state.state_dict())
    assert not stacks.run(again, 0.0, tmp_path / "stopped.pt")
    saved = torch.load(tmp_path / "stopped.pt", weights_only=True)
    again = [stacks.Members(of, "cpu") for of in mine]
    for stack, state in zip(again, saved, strict=True):
        stack.load_state_dict(state)
    assert stacks.run(again, math.inf)
    assert [values for stack in again for values in stack.values(1.0)] == found


def test_a_stack_of_redrawings_says_what_they_say(module) -> None:
    """Members that end at unlike times, after which the stack goes on without them."""
    redraw, stacked = module("redraw", "nakamura2022"), module("stacked", "nakamura2022")
    rows = {"Single upper": 1e-4, "Single lower": 0.1, "Min-norm": 0.03, "Central + tension": 0.02}
    settings = {"epochs": 4, "patience": 1}
    cells = [redraw.cell(row, rate, 1, **settings) for row, rate in rows.items()]
    stack = stacked.Members(cells, "cpu")
    assert stack.run(math.inf)
    assert stack.ended
    ends = set()
    for cell in cells:
        found, alone = stack.values()[stacked.key(cell)], redraw.run(cell)
        ends.add(found["epochs"])
        assert found.keys() == alone.keys()
        assert found["monitored"] == pytest.approx(alone["monitored"], rel=1e-4)
        for what in ("best epoch", "epochs"):
            assert found[what] == alone[what]
        for what in ("validation", "test"):
            assert found[what] == pytest.approx(alone[what], rel=1e-4)
        for task, weights in alone["weights"].items():
            assert found["weights"][task] == pytest.approx(weights, rel=1e-3)
            for what in ("curves", "losses"):
                assert found[what][task] == pytest.approx(alone[what][task], rel=1e-4)
    assert len(ends) > 1
    with pytest.raises(ValueError, match="differ in row, rate and seed alone"):
        stacked.Members([*cells, {**cells[0], "dropout": True}], "cpu")


def test_gradients_of_a_stack_are_autograds(module) -> None:
    """In float64, of each task and for every parameter, where many entries of a field are equal."""
    redraw, stacked = module("redraw", "nakamura2022"), module("stacked", "nakamura2022")
    rows = ("Single lower", 2), ("Min-norm", 1), ("Uniform", 2), ("Single upper", 1)
    stack = stacked.Members([redraw.cell(row, 0.1, seed) for row, seed in rows], "cpu")
    stack.parameters = stack.parameters.double()
    stack._make_room()
    chance = torch.Generator().manual_seed(3)
    pictures = torch.randn(2, 6, 28, 28, generator=chance, dtype=torch.float64)
    pictures[:, :, :11] = -0.4242  # nothing is drawn there
    targets = {
        "upper": torch.randint(10, (2, 6), generator=chance),
        "lower": torch.rand(2, 6, 784, generator=chance, dtype=torch.float64),
    }
    losses, found = stack.gradients(pictures, *targets.values())
    for k, cell in enumerate(stack.cells):
        torch.manual_seed(cell["seed"])
        tasks = redraw.AGGREGATORS[cell["row"]][0]
        network = redraw.network(tasks, False, "400").double()
        of_seed = int(stack.data.which[k])
        outputs = network(pictures[of_seed].unsqueeze(1))
        for task in tasks:
            loss = (nn.CrossEntropyLoss if task == "upper" else nn.MSELoss)()(
                outputs[task], targets[task][of_seed]
            )
            for p in network.parameters():
                p.grad = torch.zeros_like(p)
            loss.backward(retain_graph=True)
            expected, at = stack.flat(network, gradients=True), redraw.BOTH.index(task)
            assert float(losses[k, at]) == pytest.approx(loss.item(), rel=1e-12)
            trunk, heads = expected[: stack.shared], expected[stack.shared :]
            torch.testing.assert_close(found[k, at], trunk, rtol=1e-9, atol=1e-15)
            own = heads != 0
            torch.testing.assert_close(
                stack._gradient[k, stack.shared :][own], heads[own], rtol=1e-9, atol=1e-15
            )


@pytest.mark.parametrize(
    ("resize", "placed"), [("bilinear", False), ("bilinear", True), ("nearest", True)]
)
def test_a_stack_pairs_pictures_anew_as_single_runs_do(module, resize, placed) -> None:
    redraw, stacked = module("redraw", "nakamura2022"), module("stacked", "nakamura2022")
    how = {"resize": resize, "fresh": True, "placed": placed}
    cells = [redraw.cell("Uniform", 0.1, seed, **how) for seed in (3, 4)]
    drawn = stacked._Fresh(cells, torch.device("cpu"))
    drawn.draw(1)
    found = drawn.batch(torch.tensor(64), 64)
    for k, seed in enumerate((3, 4)):
        source = redraw.Fresh(64, resize, True, placed=placed)
        stream = Stream(source, 64, mixed_seed(seed, *b"data"))
        inputs, targets = stream.batch(len(source) + 1)
        assert torch.equal(found[1][k], targets["upper"])
        # The CPU makes bytes smaller bilinearly with weights that are rounded.
        level = 1.01 / 255 if resize == "bilinear" else 1e-6
        apart = (found[2][k] - targets["lower"]).abs().max()
        assert apart <= level if placed else apart == 0
        assert (found[0][k] - inputs.squeeze(1)).abs().max() <= level / 0.3081


@pytest.mark.parametrize("row", ["Min-norm", "Min-norm (exact) + tension", "Central + tension"])
def test_weights_of_a_stack_are_the_methods(module, row) -> None:
    redraw, stacked = module("redraw", "nakamura2022"), module("stacked", "nakamura2022")
    weighing = stacked.Weighing([row], torch.ones(1, 2, dtype=torch.bool))
    method = eh.Running(redraw.AGGREGATORS[row][1](), ["upper", "lower"])
    chance = torch.Generator().manual_seed(3)
    for step in range(30):
        jacobian = torch.randn(2, 3, generator=chance, dtype=torch.float64)
        jacobian[1] *= 0.05 if step % 3 else 20  # vertices as well
        losses = torch.rand(2, generator=chance, dtype=torch.float64)
        expected = method(eh.TaskGradients.of(jacobian=jacobian, losses=losses))
        found = weighing((jacobian @ jacobian.T)[None], losses[None])[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_wants_a_gpu_runs_in_parts(module, monkeypatch, tmp_path) -> None:
    gpu = module("gpu")
    experiments = {"bellavia2026": gpu.QUADRANTS, "nakamura2022": "MultiMNIST, the paper's rule"}
    experiments["sener2018"] = gpu.TIMING
    for name in ("EVENHAND_DEVICE", "EVENHAND_UNTIL", "EVENHAND_RUNS"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the script sets
        monkeypatch.delenv(name)

    def call(part: str, *options: str) -> None:
        command = [part, "--device", "cpu", "--small", "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *command])
        gpu.main()

    call("quadrants", "--minutes", "0", "--keep")
    assert not gpu.Ledger(tmp_path / "out" / "bellavia2026").found(gpu.QUADRANTS)
    call("sener", "--minutes", "0")
    assert not gpu.Ledger(tmp_path / "out" / "sener2018").lines
    for part in ("timing", "quadrants", "sener"):
        call(part)
    call("multimnist", "--readings", "fixed", "placed")
    call("merge", "--papers", str(tmp_path / "papers"))
    numbers = {}
    for paper, experiment in experiments.items():
        runs = gpu.Ledger(tmp_path / "papers" / paper)
        assert runs.lines == gpu.Ledger(tmp_path / "out" / paper).lines
        numbers[paper] = len(runs.found(experiment))
    assert numbers == {"sener2018": 2, "bellavia2026": 8, "nakamura2022": 4}
    assert len(runs.found(gpu.multimnist.LONG)) == 2
    ledger = gpu.Ledger(tmp_path / "papers" / "nakamura2022")
    placed = "MultiMNIST, the paper's rule, fresh pairs, digits redrawn in place"
    assert len(ledger.found(placed)) == 4
    before = (tmp_path / "papers" / "sener2018" / "runs.jsonl").read_text()
    call("merge", "--papers", str(tmp_path / "papers"))
    assert (tmp_path / "papers" / "sener2018" / "runs.jsonl").read_text() == before
