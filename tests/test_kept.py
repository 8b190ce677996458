"""What a comparison leaves behind: the best weights of every run, and whose data they are of."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from evenhand import MultiTaskNetwork, sources
from evenhand.comparison.compare import compare, finished, prepare
from evenhand.comparison.folder import read_manifest
from evenhand.comparison.request import Settings, forget
from evenhand.comparison.weights import BEST, load_network, read_weights
from evenhand.data import Problem, Source, Split, Task
from evenhand.data.fingerprint import fingerprint, of_files
from evenhand.data.pictures import Pictures
from evenhand.training.loop import evaluate
from evenhand.training.records import RecordFile


class SquaredError:
    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def update(self, preds, target):
        self.sum += float((preds - target).square().sum())
        self.seen += target.numel()

    def compute(self):
        return torch.tensor(self.sum / self.seen)


def network(tasks: Sequence[str]) -> MultiTaskNetwork:
    trunk = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    return MultiTaskNetwork(trunk, {task: nn.Linear(4, 1) for task in tasks})


def split(samples: int, seed: int) -> Split:
    x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))
    return Split(x, {"sum": x.sum(1, keepdim=True), "norm": x.square().sum(1, keepdim=True)})


def made(shift: float = 0.0) -> Problem:
    train = split(24, 0)
    return Problem(
        name="kept",
        summary="points",
        citation="made for the test",
        tasks=dict.fromkeys(("sum", "norm"), Task(functional.mse_loss, SquaredError, "MSE", False)),
        network=network,
        train=Split(train.inputs + shift, train.targets),
        validation=split(12, 1),
        test=split(12, 2),
        batch_size=12,
        epochs=4,
    )


@pytest.fixture
def offered(monkeypatch) -> Iterator[Callable[[Problem], None]]:
    """Gives the problem that is called "kept" from now on."""
    module = ModuleType("kept_problem")
    monkeypatch.setitem(sys.modules, "kept_problem", module)
    source = Source("kept", "kept_problem", "points", "made for the test")
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, source))

    def offer(problem: Problem, process: str = "another") -> None:
        module.load = lambda seed: problem
        if process == "another":
            forget()

    offer(made())
    yield offer
    forget()


SETTINGS = Settings("kept", seeds=(0, 1), rates=(0.01, 0.1, 1e20), epochs=4)


# Weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["never", "always"])
def test_every_run_keeps_the_weights_of_its_best_epoch(stack, offered, tmp_path) -> None:
    """What the file's network says is what the run's record of that epoch and its result say."""
    problem = made()
    comparison = compare(replace(SETTINGS, stack=stack), ("single-task", "mgda"), tmp_path)
    trained = [result for result in comparison.results if result.job.recipe != "constant"]
    assert len(trained) == 18
    assert {result.status == "finished" for result in trained} == {True, False}
    for result in trained:
        folder = tmp_path / result.job.folder
        if result.status != "finished":
            with pytest.raises(ValueError, match="not finished, has diverged"):
                load_network(folder)
            continue
        kept = load_network(folder)
        assert not kept.training
        _, about = read_weights(folder)
        told = {**vars(result.job), "source": "kept", "epoch": result.epoch}
        assert {key: about[key] for key in told} == told
        assert tuple(about["tasks"]) == result.tasks == kept.tasks
        _, test = evaluate(kept, problem, problem.test, result.tasks)
        assert test == pytest.approx(result.test)
        records = {r.epoch: r for r in RecordFile(folder / "records.jsonl")}
        losses, metrics = evaluate(kept, problem, problem.validation, result.tasks)
        assert losses == pytest.approx(records[result.epoch].validation)
        assert metrics == pytest.approx(result.validation)


def test_where_each_task_has_an_epoch_of_its_own_the_weights_of_all_of_these_are_kept(
    offered, tmp_path
) -> None:
    """And the network of each says of its tasks what the result does."""
    problem = made()
    settings = replace(SETTINGS, seeds=(1,), rates=(0.1,), epochs=8, references="all")
    results = compare(settings, ("single-task", "sg"), tmp_path).results
    (result,) = (r for r in results if r.job.recipe == "sg-own-epochs")
    folder = tmp_path / result.job.folder
    inside = sorted(folder.glob("*/best.safetensors"))
    served = {}
    for file in inside:
        kept = load_network(file.parent)
        _, about = read_weights(file.parent)
        assert file.parent.name == f"epoch{about['epoch']}"
        assert kept.tasks == ("sum", "norm")
        for part, said in ((problem.test, result.test), (problem.validation, result.validation)):
            _, metrics = evaluate(kept, problem, part, ("sum", "norm"))
            for task in about["serves"]:
                assert metrics[task] == pytest.approx(said[task])
                assert served.setdefault(task, file) == file
    assert served.keys() == {"sum", "norm"}
    assert len(set(served.values())) == len(inside) == 2  # else this would show little
    with pytest.raises(ValueError, match=r"weights for each task by itself.*epoch\d+ for 'sum'"):
        load_network(folder)


def test_the_file_is_plain_safetensors_of_the_state(offered, tmp_path) -> None:
    settings = replace(SETTINGS, seeds=(0,), rates=(0.1,))
    result, _constant = compare(settings, ("sg",), tmp_path).results
    stream = torch.get_rng_state()
    kept = load_network(tmp_path / result.job.folder, made())
    assert torch.equal(torch.get_rng_state(), stream)
    found = load_file(tmp_path / result.job.folder / BEST)
    assert found.keys() == kept.state_dict().keys()
    other = replace(
        made(),
        network=lambda tasks: MultiTaskNetwork(
            nn.Linear(2, 3), {t: nn.Linear(3, 1) for t in tasks}
        ),
    )
    with pytest.raises(ValueError, match="the network of kept is not the one whose weights"):
        load_network(tmp_path / result.job.folder, other)
    (tmp_path / result.job.folder / BEST).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        load_network(tmp_path / result.job.folder)


# Data -----------------------------------------------------------------------------------------


def test_the_manifest_knows_data_and_labels(offered, tmp_path) -> None:
    gap = made()
    gap.train.targets["norm"][:5] = torch.nan
    offered(gap)
    prepare(SETTINGS, ("sg",), tmp_path)
    told = read_manifest(tmp_path)["data"]
    assert told["fingerprint"] == fingerprint(gap)
    assert told["labels"]["norm"]["train"] == {"samples": 24, "used": 19, "entries": 19, "gaps": 0}
    assert {part: count["used"] for part, count in told["labels"]["sum"].items()} == {
        "train": 24,
        "validation": 12,
        "test": 12,
    }


def test_going_on_with_other_data_is_refused_and_with_the_same_is_not(offered, tmp_path) -> None:
    prepare(SETTINGS, ("sg",), tmp_path)
    offered(made(shift=1e-6))
    with pytest.raises(ValueError, match=r"the data of kept are not those that .* begun with"):
        prepare(SETTINGS, ("sg",), tmp_path, resume=True)
    offered(made())
    prepare(SETTINGS, ("sg",), tmp_path, resume=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["data"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"begun with \(fingerprint None"):
        prepare(SETTINGS, ("sg",), tmp_path, resume=True)


def test_a_second_comparison_reads_the_data_again(offered, tmp_path) -> None:
    """In one process, as in a notebook in which the table is changed between two calls."""
    settings = replace(SETTINGS, seeds=(0,), rates=(0.1,))
    one = compare(settings, ("sg",), tmp_path / "1")
    offered(made(shift=3.0), process="this")
    other = compare(settings, ("sg",), tmp_path / "2")
    assert one.results[0].test != other.results[0].test
    assert finished(tmp_path / "1").results == one.results


def test_a_task_without_labels_is_told_before_a_folder_is_made(offered, tmp_path) -> None:
    bare = made()
    bare.validation.targets["norm"][:] = torch.nan
    offered(bare)
    with pytest.raises(ValueError, match="task 'norm' has no label in the validation part"):
        prepare(SETTINGS, ("sg",), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Fingerprints ---------------------------------------------------------------------------------


def changed(which: str) -> Problem:
    problem = made()
    part = getattr(problem, which)
    part.targets["sum"][-1] += 1e-6
    return problem


def test_a_fingerprint_is_of_every_part_and_nothing_else() -> None:
    first = fingerprint(made())
    assert first == fingerprint(made()) == fingerprint(replace(made(), name="other", epochs=9))
    assert len(first) == 64
    others = [changed(which) for which in ("train", "validation", "test")]
    others.append(replace(made(), validation=made().test, test=made().validation))
    others.append(replace(made(), train=made().train.to(torch.device("cpu"))))
    found = [fingerprint(other) for other in others]
    assert found.pop() == first
    assert len({first, *found}) == 5


def test_types_and_shapes_count() -> None:
    kinds = [
        Split(torch.zeros(4), {"a": torch.zeros(4)}),
        Split(torch.zeros(4, 1), {"a": torch.zeros(4)}),
        Split(torch.zeros(4), {"a": torch.zeros(4, dtype=torch.int32)}),
        Split(torch.zeros(4), {"b": torch.zeros(4)}),
    ]
    assert len({fingerprint(replace(made(), train=kind)) for kind in kinds}) == 4


def test_batches_loaders_and_pictures_have_fingerprints(tmp_path) -> None:
    x, y = torch.arange(6.0), torch.arange(6.0)
    batches = [(x[:3], {"a": y[:3]}), (x[3:], {"a": y[3:]})]
    loader = DataLoader(TensorDataset(x, y), batch_size=3)
    files = [tmp_path / name for name in ("one.png", "two.png")]
    for file in files:
        file.write_bytes(b"12345")

    def pictures() -> Pictures:
        return Pictures(lambda index: (x, {}), 2, 1, files=files)

    found = [
        fingerprint(replace(made(), train=t)) for t in (batches, loader, pictures().shuffled())
    ]
    assert len(set(found)) == 3
    y[5] = 9.0
    again = [fingerprint(replace(made(), train=t)) for t in (batches, loader)]
    assert not set(again) & set(found)
    files[1].write_bytes(b"1234")
    assert fingerprint(replace(made(), train=pictures().shuffled())) != found[2]
    assert of_files(files) != of_files(files[::-1])
    generated = replace(made(), train=range(5))
    assert fingerprint(generated) != fingerprint(replace(made(), train=range(6)))
