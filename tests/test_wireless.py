"""Wireless signals: the real file's layout on a small file made here, and the stand-in."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from evenhand.data import problem, wireless

SCRIPT = Path(__file__).parent.parent / "papers" / "bellavia2026" / "reproduce.py"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Two samples of every kind at two SNRs, laid out as in RadCom over-the-air."""
    monkeypatch.setenv("EVENHAND_DATA", str(tmp_path))
    generator = np.random.default_rng(0)
    with h5py.File(tmp_path / wireless.FILE, "w") as stored:
        for modulation, signal in wireless.KINDS:
            for snr in ("-4", "10"):
                for number in ("0", "1"):
                    values = generator.normal(size=256)
                    stored[str((modulation, signal, snr, number))] = values
    return tmp_path / wireless.FILE


def test_every_sample_is_read_with_its_two_labels(file) -> None:
    inputs, modulation, signal = wireless.read(file, lowest_snr=-math.inf)
    assert inputs.shape == (36, 2, 128)
    name = "('BPSK', 'SATCOM', '10', '1')"
    with h5py.File(file) as stored:
        values = torch.from_numpy(stored[name][:]).float()
        where = sorted(stored).index(name)
    assert torch.equal(inputs[where].flatten(), values)
    assert wireless.MODULATIONS[modulation[where]] == "BPSK"
    assert wireless.SIGNALS[signal[where]] == "SATCOM"
    assert modulation.bincount().tolist() == [4, 4, 4, 4, 4, 16]
    assert signal.bincount().sum() == 36


def test_signals_with_more_noise_than_asked_for_are_left_out(file) -> None:
    names = {"('BPSK', 'SATCOM', '0', '0')": 1.0, "('BPSK', 'SATCOM', '-2', '0')": 2.0}
    with h5py.File(file, "a") as stored:
        for name, value in names.items():
            stored[name] = np.full(256, value)
    inputs, modulation, _ = wireless.read(file)
    assert modulation.bincount().tolist() == [2, 2, 2, 3, 2, 8]  # 10 dB, and the one of 0 dB
    assert bool((inputs == 1).all(dim=(1, 2)).any())
    assert not bool((inputs == 2).all(dim=(1, 2)).any())
    assert [len(wireless.read(file, snr)[0]) for snr in (-20, -4, -2, 2, 10)] == [
        38,
        38,
        20,
        18,
        18,
    ]
    with pytest.raises(ValueError, match="no samples of 12 dB or more"):
        wireless.read(file, 12)


def test_the_problem_is_made_of_the_file(file) -> None:
    made = problem("wireless")
    assert [len(part) for part in (made.train, made.validation, made.test)] == [10, 3, 5]
    train = made.train.inputs  # each of 256 columns by itself, as scikit-learn's scaler does it
    torch.testing.assert_close(train.mean(dim=0), torch.zeros(2, 128), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(dim=0, correction=0), torch.ones(2, 128))
    train = wireless.load(scaling="channel", lowest_snr=-4).train.inputs
    assert len(train) == 20
    torch.testing.assert_close(train.mean(dim=(0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(dim=(0, 2), correction=0), torch.ones(2))
    assert not torch.allclose(train.std(dim=0, correction=0), torch.ones(2, 128), atol=0.1)


def test_inputs_are_standardised_as_scikit_learn_does_it() -> None:
    train, other = 5 * torch.randn(30, 2, 128) + 3, torch.randn(4, 2, 128)
    train[:, 0, 5] = 7.0  # does not vary
    scaler = StandardScaler().fit(train.flatten(1).numpy())
    wanted = torch.from_numpy(scaler.transform(other.flatten(1).numpy()))
    got = wireless.standardised(other, train, "feature").flatten(1)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="scaling='sample': must be one of feature, channel"):
        wireless.standardised(other, train, "sample")  # type: ignore[arg-type]


def test_without_the_file_its_source_and_licence_are_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVENHAND_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"CC BY-NC-SA 4\.0.*github\.com/ANDRO"):
        problem("wireless")


def test_the_papers_script_runs_on_the_file(file, tmp_path) -> None:
    options = ["--quick", "--only", "wireless", "--out", tmp_path]
    command = [sys.executable, "-W", "error", SCRIPT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    experiments = json.loads((tmp_path / "result.json").read_text())["experiments"]
    assert list(experiments) == ["Wireless signals, RadCom over-the-air"]
    file.unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{file} is not there")


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("('QAM', 'SATCOM', '10', '0')", 256, "is none of the nine kinds"),
        ("no tuple", 256, r"is no \(modulation, signal, SNR, number\)"),
        ("('BPSK', 'SATCOM', 'loud', '0')", 256, r"is no \(modulation, signal, SNR, number\)"),
        ("('BPSK', 'SATCOM', '10', '7')", 100, "has 100 numbers, not 256"),
    ],
)
def test_what_is_laid_out_otherwise_is_named(file, name, count, told) -> None:
    with h5py.File(file, "a") as stored:
        stored[name] = np.zeros(count)
    with pytest.raises(ValueError, match=told):
        wireless.read(file)


@pytest.mark.parametrize(("kernel", "parameters"), [(3, 9_728), (4, 12_928)])
def test_the_network_is_table_4s(kernel, parameters) -> None:
    network = wireless.network(["modulation", "signal"], kernel)
    outputs = network(torch.randn(5, 2, 128))
    assert outputs["modulation"].shape == (5, 6)
    assert outputs["signal"].shape == (5, 8)
    trunk = sum(p.numel() for p in network.trunk.parameters())
    assert trunk == parameters  # of 2→64→32→32 channels


def test_stand_in_signals_have_their_power_and_noise() -> None:
    clean, modulation, signal = wireless.make(4, snr=300.0)
    noisy, _, _ = wireless.make(4, snr=0.0)
    power = clean.square().sum(dim=1).mean(dim=1)
    torch.testing.assert_close(power, torch.ones(36), rtol=1e-4, atol=0)
    assert 0.9 < float((noisy - clean).square().sum(dim=1).mean()) < 1.1  # as strong as the signal
    kinds = {
        (wireless.MODULATIONS[m], wireless.SIGNALS[s])
        for m, s in zip(modulation, signal, strict=True)
    }
    assert kinds == set(wireless.KINDS)
    again, _, _ = wireless.make(4, snr=0.0)
    assert torch.equal(noisy, again)
