"""Wireless signals with two labels each: how they are modulated, and what they are for.

`wireless` reads RadCom over-the-air (Jagannath & Jagannath, arXiv 2101.10254): 128 in-phase and
128 quadrature samples at 10 MS/s, signal-to-noise ratios from −20 to 18 dB, 6 modulations and 8
signal types in the nine combinations below. It is licensed CC BY-NC-SA 4.0 and is not part of this
package: https://github.com/ANDROComputationalSolutions/RadarCommDataset says where to get it. The
HDF5 file has a data set of 256 numbers for each sample, whose name is a tuple written as text:
('AM-DSB', 'AM radio', '10', '0') is modulation, signal, SNR in dB and number. Bellavia, Della Santa
& Papini use some of the SNRs; which, is lost in our copy. By default those of 0 dB and more are
read, ten of the twenty: `papers/bellavia2026/sizes.py` says why.

`signals` is a stand-in that is made here, for those without the file: the same nine combinations,
their waveforms drawn as textbooks describe them, at one SNR. It says nothing about the real data.

The network is that of Bellavia, Della Santa & Papini (arXiv 2312.16340), Table 4: Conv1D 64-32-32
(same padding, ReLU) over I and Q as two channels of 128, global max pooling, heads 64-64-6 and
64-64-8. The kernel size is lost in our copy: 4 fits the stated share of parameters best. The
paper's "standard scaler" comes before that network, whose first layer makes 128×2 of 256 numbers;
so the scaler sees 256 columns and standardises each by itself. That is the default for the real
signals; the stand-in's two channels are standardised as wholes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import sources
from evenhand.data.mnist import folder
from evenhand.data.problem import Metric, Problem, Split, Task
from evenhand.data.splits import Parts, Pool, strata
from evenhand.files import require_readable
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

KINDS = (
    ("AM-DSB", "AM radio"),
    ("AM-SSB", "AM radio"),
    ("ASK", "short-range"),
    ("BPSK", "SATCOM"),
    ("FMCW", "Radar Altimeter"),
    ("PULSED", "Air-Ground-MTI"),
    ("PULSED", "Airborne-detection"),
    ("PULSED", "Airborne-range"),
    ("PULSED", "Ground mapping"),
)
"""The combinations of modulation and signal type in the data set."""
MODULATIONS = tuple(sorted({modulation for modulation, _ in KINDS}))
SIGNALS = tuple(sorted({signal for _, signal in KINDS}))
FILE = "RadComOta2.45GHz.hdf5"
LENGTH = 128
KERNEL = 4
EACH = 1_000
"""Samples of each kind in the stand-in."""
SNR = 0.0
"""Of the stand-in, in dB."""
LOWEST_SNR = 0.0
"""Of the real signals that are used by default, in dB; the file has −20, −18, … 18."""
SHARES = (0.56, 0.14, 0.30)
"""Of the signals, those that train, validate and test."""
Scaling = Literal["feature", "channel"]


def load(seed: int = 0, lowest_snr: float = LOWEST_SNR, scaling: Scaling = "feature") -> Problem:
    """The real signals, in `mnist.folder()`; inputs [n, 2, 128], targets classes int64 [n].

    Args:
        seed: of the division into training, validation and test.
        lowest_snr: in dB; signals with more noise are left out. −inf takes all.
        scaling: whether each of the 256 numbers is standardised by itself ("feature"), or I and Q
            are, over all times ("channel"); by the training signals in either case.

    Raises:
        ValueError: the file is not there or is laid out otherwise, it has no such signals, h5py is
            not installed, or `scaling` is neither.
    """
    return _problem("wireless", read(folder() / FILE, lowest_snr), seed, 512, scaling)


def load_stand_in(seed: int = 0) -> Problem:
    """Signals made here, `EACH` of each kind at `SNR`; the same samples for every seed's split."""
    return _problem("signals", make(EACH, SNR), seed, 64, "channel")


def _problem(
    name: str, samples: tuple[Tensor, Tensor, Tensor], seed: int, batch: int, scaling: Scaling
) -> Problem:
    inputs, modulation, signal = samples
    _, validation, test = SHARES
    make = partial(_of_parts, name, samples, batch, scaling)
    classes = strata([modulation, signal])
    pool = Pool(len(inputs), make, strata=classes, shares=(test, validation))
    return replace(make(_parts(len(inputs), seed)), pool=pool)


def _of_parts(
    name: str, samples: tuple[Tensor, Tensor, Tensor], batch: int, scaling: Scaling, parts: Parts
) -> Problem:
    source = sources.source(name)
    train, validation, test = _sides(*samples, parts, scaling)
    return Problem(
        name=name,
        summary=source.summary,
        citation=source.citation,
        tasks={"modulation": _classes(len(MODULATIONS)), "signal": _classes(len(SIGNALS))},
        network=network,
        train=train,
        validation=validation,
        test=test,
        batch_size=batch,
        epochs=100,
    )


def _classes(number: int) -> Task:
    from torchmetrics.classification import MulticlassRecall

    metric: Callable[[], Metric] = partial(MulticlassRecall, number, average="weighted")
    return Task(functional.cross_entropy, metric, "weighted recall", True)


def network(tasks: Sequence[str], kernel: int = KERNEL) -> MultiTaskNetwork:
    """The paper's network, with the heads of `tasks`."""
    before = (kernel - 1) // 2  # of an even kernel, the odd zero goes behind

    def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        zeros = nn.ConstantPad1d((before, kernel - 1 - before), 0.0)
        return zeros, nn.Conv1d(inputs, outputs, kernel), nn.ReLU()

    layers = (*convolution(2, 64), *convolution(64, 32), *convolution(32, 32))
    trunk = nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten())
    sizes = {"modulation": len(MODULATIONS), "signal": len(SIGNALS)}
    return MultiTaskNetwork(trunk, {task: _head(sizes[task]) for task in tasks})


def _head(classes: int) -> nn.Module:
    dense = (nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return nn.Sequential(*dense, nn.Linear(64, classes))


def _parts(count: int, seed: int) -> Parts:
    """The loader's own, whatever the classes."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, *b"wireless"))
    order = torch.randperm(count, generator=generator)
    train, validation = (round(share * count) for share in SHARES[:2])
    return Parts(*torch.split(order, [train, validation, count - train - validation]))


def _sides(
    inputs: Tensor, modulation: Tensor, signal: Tensor, parts: Parts, scaling: Scaling
) -> list[Split]:
    """Standardised on the training part."""
    inputs = standardised(inputs, inputs[parts.train], scaling)
    return [
        Split(inputs[part], {"modulation": modulation[part], "signal": signal[part]})
        for part in (parts.train, parts.validation, parts.test)
    ]


def standardised(inputs: Tensor, train: Tensor, scaling: Scaling) -> Tensor:
    """[n, 2, 128] less the mean of `train` over its deviation (with n, not n − 1).

    What does not vary in `train` is shifted alone. Raises ValueError for another `scaling` than
    "feature" and "channel".
    """
    over = {"feature": (0,), "channel": (0, 2)}
    if scaling not in over:
        raise ValueError(f"scaling={scaling!r}: must be one of {', '.join(over)}")
    mean = train.mean(dim=over[scaling], keepdim=True)
    deviation = train.std(dim=over[scaling], correction=0, keepdim=True)
    return (inputs - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


# The real ones ----------------------------------------------------------------------------------


def read(file: Path, lowest_snr: float = LOWEST_SNR) -> tuple[Tensor, Tensor, Tensor]:
    """Samples of an HDF5 file: [n, 2, 128], modulations and signals int64 [n].

    Args:
        file: laid out as RadCom over-the-air is.
        lowest_snr: in dB; samples with more noise are left out.

    Raises:
        ValueError: there is no such file, or something in it is not as it should be.
    """
    if not file.exists():
        raise ValueError(
            f"{file} is not there. The RadCom over-the-air signals (CC BY-NC-SA 4.0) are linked "
            "from https://github.com/ANDROComputationalSolutions/RadarCommDataset; put the file "
            "into the folder that EVENHAND_DATA names. The data set `signals` is a stand-in."
        )
    try:
        import h5py
    except ImportError as error:
        raise ValueError("reading HDF5 needs h5py: pip install 'evenhand[data]'") from error
    samples, modulations, signals = [], [], []
    require_readable(file)
    with h5py.File(file, "r") as stored:
        for name in sorted(stored):
            modulation, signal, snr = _kind(name, file)
            if snr < lowest_snr:
                continue
            values = np.asarray(stored[name], dtype=np.float32).reshape(-1)
            if values.shape != (2 * LENGTH,):
                raise ValueError(f"{file}: {name} has {len(values)} numbers, not {2 * LENGTH}")
            samples.append(values.reshape(2, LENGTH))
            modulations.append(MODULATIONS.index(modulation))
            signals.append(SIGNALS.index(signal))
    if not samples:
        raise ValueError(f"{file} has no samples of {lowest_snr:g} dB or more")
    stacked = torch.from_numpy(np.stack(samples))
    return stacked, torch.tensor(modulations), torch.tensor(signals)


def _kind(name: str, file: Path) -> tuple[str, str, float]:
    """Modulation, signal type and SNR in dB of a sample's name."""
    try:
        modulation, signal, snr, *_ = ast.literal_eval(name)
        noise = float(snr)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{file}: {name!r} is no (modulation, signal, SNR, number)") from error
    known = {(m.lower(), s.lower()): (m, s) for m, s in KINDS}
    pair = str(modulation).strip().lower(), str(signal).strip().lower()
    if pair not in known:
        raise ValueError(f"{file}: {name!r} is none of the nine kinds {', '.join(map(str, KINDS))}")
    return *known[pair], noise


# The stand-in -----------------------------------------------------------------------------------


def make(each: int, snr: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`each` signals of every kind at `snr` dB: [9 each, 2, 128], modulations, signals.

    Every signal has unit power before noise, a random phase and a carrier that is off by up to 1 %
    of the sampling rate.
    """
    generator = np.random.default_rng(mixed_seed(seed, *b"signals"))
    waves = np.concatenate([_waves(kind, each, generator) for kind in range(len(KINDS))])
    waves /= np.sqrt((np.abs(waves) ** 2).mean(axis=1, keepdims=True))
    drift = generator.uniform(-0.01, 0.01, (len(waves), 1)) * np.arange(LENGTH)
    phase = generator.uniform(0, 1, (len(waves), 1))
    noise = generator.normal(size=(2, *waves.shape)) * 10 ** (-snr / 20) / np.sqrt(2)
    heard = waves * np.exp(2j * np.pi * (drift + phase)) + noise[0] + 1j * noise[1]
    inputs = torch.from_numpy(np.stack([heard.real, heard.imag], axis=1).astype(np.float32))
    kinds = [KINDS[k] for k in range(len(KINDS)) for _ in range(each)]
    modulations = torch.tensor([MODULATIONS.index(modulation) for modulation, _ in kinds])
    return inputs, modulations, torch.tensor([SIGNALS.index(signal) for _, signal in kinds])


Numbers = npt.NDArray[np.complexfloating[Any, Any]]
PULSES = {  # share of the time that is pulse, pulses in 128 samples
    "Air-Ground-MTI": (0.10, 8),
    "Airborne-detection": (0.25, 4),
    "Airborne-range": (0.05, 2),
    "Ground mapping": (0.40, 2),
}


def _waves(kind: int, count: int, generator: np.random.Generator) -> Numbers:
    """Baseband waveforms [count, 128] of one kind."""
    modulation, signal = KINDS[kind]
    time = np.arange(LENGTH)
    if modulation.startswith("AM"):
        return _speech(modulation, count, generator)
    if modulation == "ASK":  # on and off, 8 samples a symbol
        return np.repeat(generator.choice([0.25, 1.0], (count, 16)), 8, axis=1) + 0j
    if modulation == "BPSK":  # opposite phases, 4 samples a symbol
        return np.repeat(generator.choice([-1.0, 1.0], (count, 32)), 4, axis=1) + 0j
    if modulation == "FMCW":  # a sawtooth of frequency
        slope = generator.uniform(0.001, 0.003, (count, 1))
        sweep = generator.integers(48, 96, (count, 1))
        place = (time + generator.integers(0, LENGTH, (count, 1))) % sweep
        chirp: Numbers = np.exp(1j * np.pi * slope * (place - sweep / 2) ** 2)
        return chirp
    share, pulses = PULSES[signal]
    period = LENGTH // pulses
    place = (time + generator.integers(0, period, (count, 1))) % period
    return (place < max(2, round(share * period))) + 0j


def _speech(modulation: str, count: int, generator: np.random.Generator) -> Numbers:
    """A few tones on a carrier: both sidebands, or the upper one alone without the carrier."""
    time = np.arange(LENGTH)
    frequency = generator.uniform(0.01, 0.08, (count, 3, 1))
    start = generator.uniform(0, 1, (count, 3, 1))
    tones: Numbers = np.exp(2j * np.pi * (frequency * time + start)).mean(axis=1)
    return tones if modulation == "AM-SSB" else 1.0 + 0.7 * tones.real + 0j
