"""What every test runs under: one thread per process, a fixed seed, examples that race no clock."""

from __future__ import annotations

import os

# Before torch and numpy load, so that their BLAS obeys, and with it the commands that tests start:
# pytest-xdist already fills the cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)

collect_ignore = ["attack"]  # a program of its own

# No deadline and no speed check: a busy machine is no failure. In CI the examples are the same
# every time; elsewhere they vary, and one that failed is kept in .hypothesis and tried first.
settings.register_profile(
    "evenhand",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("evenhand")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A network built in a test is the same network in every run, and in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _no_real_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Instead of MNIST, scikit-learn's digits three times as large, few of them."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    large = np.kron(digits.images[:700], np.ones((3, 3))) * (255 / 16)
    pictures = np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    classes = digits.target[:700].astype(np.uint8)
    for part, those in (("train", slice(0, 600)), ("test", slice(600, 700))):
        np.savez(folder / f"mnist_{part}.npz", x=pictures[those], y=classes[those])
    os.environ["EVENHAND_DATA"] = str(folder)
