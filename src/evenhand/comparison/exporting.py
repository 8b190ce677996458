"""A kept network in a form that other programs run: torch.export and ONNX, checked by its numbers.

What is exported is one function of the network's inputs. For a table, it answers in the columns'
units and in probabilities; what turns cells into inputs is in preparation.json, in plain numbers.
For any other problem it gives the heads' outputs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from evenhand.comparison.folder import MANIFEST, read_manifest
from evenhand.comparison.request import Settings
from evenhand.comparison.weights import PREPARED, load_network
from evenhand.files import read_bytes, require_writable, write_atomically
from evenhand.network import MultiTaskNetwork
from evenhand.tables.predicting import Predictor
from evenhand.tables.targets import ANSWERS, Target

FORMATS: Mapping[str, str] = {"torch": "network.pt2", "onnx": "network.onnx"}
"""By name, the file each is written to."""
NEAR = 1e-5
"""How far a number may be off, relative to the largest of its task."""


class Exported(nn.Module):
    """Inputs [b, ...] -> a tuple of answers, one tensor for each task in order.

    Args:
        network: what answers.
        targets: of a table, by task; without them outputs are given as they are.
    """

    def __init__(self, network: MultiTaskNetwork, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.trunk = network.trunk
        self.heads = network.heads
        self._targets = [targets.get(task) for task in network.tasks]

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        features = self.trunk(inputs)
        outputs = [head(features) for head in self.heads]
        return tuple(map(_answer, self._targets, outputs))


def _answer(target: Target | None, output: Tensor) -> Tensor:
    if target is None:
        return output
    said = ANSWERS[target.kind](output)
    return said * target.scale + target.mean if target.kind == "numeric" else said


def export(run: Path, out: Path, formats: tuple[str, ...] = ("torch", "onnx")) -> list[Path]:
    """Write a run's network in each format, and check that it gives the network's numbers.

    Args:
        run: the folder of a run: that of `evenhand train`, or of one run of a comparison.
        out: a folder; preparation.json is copied there, if the run was on a table.
        formats: "torch" (torch.export, .pt2) and "onnx" (needs onnx and onnxscript).

    Raises:
        ValueError: there is no network in the folder; no format, an unknown one, or one twice is
            asked for, or its package is not installed; the network cannot be exported, or what was
            written gives other numbers.
    """
    if len(set(formats)) < max(1, len(formats)):
        raise ValueError(f"format={','.join(formats)!r}: must be one or more different ones")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"format={unknown[0]!r}: must be one of {', '.join(FORMATS)}")
    network, targets, inputs = _network(run)
    module = Exported(network, targets).eval()
    with torch.no_grad():
        expected = module(inputs)
    if not all(isinstance(said, Tensor) for said in expected):
        raise ValueError(f"{run}: only networks whose heads give tensors can be exported")
    out.mkdir(parents=True, exist_ok=True)
    require_writable(out)
    files = []
    for name in formats:
        file = out / FORMATS[name]
        with TemporaryDirectory(prefix="evenhand-") as place:
            draft = Path(place) / file.name
            said = WRITERS[name](module, inputs, network.tasks, draft)
            _require_near(file, network.tasks, expected, said)
            write_atomically(file, draft.read_bytes())
        files.append(file)
    if targets and (run / PREPARED).resolve() != (out / PREPARED).resolve():
        write_atomically(out / PREPARED, read_bytes(run / PREPARED))
    return files


def _network(run: Path) -> tuple[MultiTaskNetwork, Mapping[str, Target], Tensor]:
    """The network, its targets if it is of a table, and some inputs."""
    if (run / PREPARED).exists():
        predictor = Predictor.of(run)
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(7, len(predictor.prepared.titles()), generator=generator)
        return predictor.network, predictor.prepared.targets, inputs
    folder = next((f for f in (run, *run.resolve().parents) if (f / MANIFEST).exists()), run)
    asked = read_manifest(folder)["settings"]
    settings = Settings(**{**asked, "seeds": tuple(asked["seeds"]), "rates": tuple(asked["rates"])})
    problem = settings.problem()
    network = load_network(run, problem)
    inputs, _ = next(iter(problem.validation.in_order(7)))
    if not isinstance(inputs, Tensor):
        raise ValueError(f"{run}: only networks with one tensor of inputs can be exported")
    return network, {}, inputs


def _require_near(
    file: Path, tasks: tuple[str, ...], expected: tuple[Tensor, ...], said: tuple[Tensor, ...]
) -> None:
    for task, one, other in zip(tasks, expected, said, strict=True):
        off = float((one - other.detach()).abs().max())
        if not off <= NEAR * max(1.0, float(one.abs().max())):
            raise ValueError(f"{file} gives other numbers than the network: {task} is {off:g} off")


def _as_torch(
    module: Exported, inputs: Tensor, tasks: tuple[str, ...], file: Path
) -> tuple[Tensor, ...]:
    try:
        program = torch.export.export(
            module, (inputs,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},)
        )
    except Exception as error:  # whatever a network does to the tracer
        raise ValueError(_cannot("torch.export", error)) from error
    torch.export.save(program, file)
    again = torch.export.load(file).module()
    with torch.no_grad():
        return cast(tuple[Tensor, ...], again(inputs))


def _as_onnx(
    module: Exported, inputs: Tensor, tasks: tuple[str, ...], file: Path
) -> tuple[Tensor, ...]:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch writes ONNX by it
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ValueError("writing ONNX needs onnx: pip install 'evenhand[export]'") from error
    try:
        with _quiet():
            torch.onnx.export(
                module,
                (inputs,),
                file,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["inputs"],
                output_names=[f"task{k}" for k in range(len(tasks))],
                dynamic_shapes=({0: torch.export.Dim("rows", min=1)},),
            )
    except Exception as error:  # whatever a network does to the tracer
        raise ValueError(_cannot("ONNX", error)) from error
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {f"task{k}": task for k, task in enumerate(tasks)})
    onnx.save(model, file)
    said = ReferenceEvaluator(str(file)).run(None, {"inputs": inputs.numpy()})
    return tuple(map(torch.from_numpy, said))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cannot(what: str, error: Exception) -> str:
    first, *_ = str(error).splitlines() or [type(error).__name__]
    return f"{what} cannot take this network: {first}"


Writer = Callable[[Exported, Tensor, tuple[str, ...], Path], Any]
WRITERS: Mapping[str, Writer] = {"torch": _as_torch, "onnx": _as_onnx}
