"""MNIST: found, fetched, read and paired; never the real one."""

from __future__ import annotations

import gzip
import hashlib
import io
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from evenhand.app.cli import app
from evenhand.data import mnist, multimnist, problem


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with four small files in the original format, whose digests are taken for true."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    digests = {}
    for name in mnist.FILES:
        sizes = (5, 28, 28) if "images" in name else (5,)
        values = np.arange(np.prod(sizes), dtype=np.uint32).astype(np.uint8)
        head = bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">u4").tobytes()
        content = gzip.compress(head + values.tobytes(), mtime=0)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(mnist, "FILES", digests)
    return f"file://{folder}/"


def test_what_is_fetched_is_read(tmp_path, mirror) -> None:
    lines: list[str] = []
    where = mnist.fetch(tmp_path / "new" / "folder", lines.append, mirror)
    assert len(lines) == 4
    digits = mnist.load(where)
    assert digits.train_images.shape == digits.test_images.shape == (5, 28, 28)
    assert digits.train_images[1, 0, 2] == (28 * 28 + 2) % 256
    assert digits.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert digits.test_labels.dtype == torch.int64
    mnist.fetch(where, lines.append, "file:///nowhere/")  # all is there: nothing is asked for
    assert lines[4:] == [f"{name} is there" for name in mnist.FILES]


def test_what_is_not_the_original_is_not_kept(tmp_path, mirror) -> None:
    file = Path(mirror.removeprefix("file://")) / "train-labels-idx1-ubyte.gz"
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"train-labels\S* is not the original file"):
        mnist.fetch(tmp_path / "data", mirror=mirror)
    assert not (tmp_path / "data" / file.name).exists()


def test_a_mirror_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="file:///nowhere/train-images"):
        mnist.fetch(tmp_path, mirror="file:///nowhere/")


@pytest.mark.parametrize("error", [IncompleteRead(b"half"), ConnectionResetError("gone")])
def test_a_connection_that_breaks_is_a_line_and_leaves_nothing(error, tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise error

    monkeypatch.setattr(mnist, "urlopen", lambda *arguments, **options: Broken())
    result = CliRunner().invoke(app, ["data", "mnist", "--out", str(tmp_path / "there")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "cannot be read" in line
    assert "nothing of it was kept" in line
    assert not list((tmp_path / "there").iterdir())


def test_without_data_the_way_to_it_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EVENHAND_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"`evenhand data mnist` downloads it"):
        problem("multimnist")
    result = CliRunner().invoke(app, ["compare", "multimnist", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "evenhand data mnist" in result.output


def test_a_damaged_file_is_named(tmp_path, mirror) -> None:
    where = mnist.fetch(tmp_path, mirror=mirror)
    (where / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(20)))
    with pytest.raises(ValueError, match=r"t10k-images\S* is damaged"):
        mnist.load(where)


def test_the_tool_fetches_mnist_alone(tmp_path, mirror, monkeypatch) -> None:
    monkeypatch.setattr(mnist, "MIRROR", mirror)
    result = CliRunner().invoke(app, ["data", "mnist", "--out", str(tmp_path / "there")])
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[-1] == str(tmp_path / "there")
    result = CliRunner().invoke(app, ["data", "cifar"])
    assert result.exit_code == 2
    assert "mnist can" in result.output


def test_the_second_digit_stands_six_pixels_further() -> None:
    first, second = torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1, 28, 28)
    first[0, 0, 0] = 9
    second[0, 12, 12] = 200
    first[0, 18, 18] = 50  # under the other's 12, 12
    canvas = multimnist.compose(first, second.to(torch.uint8), shift=8)
    assert canvas.shape == (1, 28, 28)
    assert canvas[0, 0, 0] == 9
    assert canvas[0, 14, 14] == 200  # row 18 of 36 is row 14 of 28; the stronger ink stands


def test_the_tasks_of_many_agree_with_each_other() -> None:
    targets = problem("multimnist-many").test.targets
    left, right = targets["left"], targets["right"]
    assert torch.equal(targets["larger"], (left > right).long())
    assert torch.equal(targets["equal"], (left == right).long())
    assert torch.equal(targets["left-parity"], left % 2)
    torch.testing.assert_close(targets["sum"] * 18, (left + right).float())


def test_no_picture_stands_on_two_sides() -> None:
    of = problem("multimnist-redraw")
    sides = [
        {image.numpy().tobytes() for image in split.targets["lower"]}
        for split in (of.train, of.validation, of.test)
    ]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]


def test_pictures_are_made_smaller_bilinearly_as_pillow_does_it() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 256, (2, 3, 28, 28), generator=generator).to(torch.uint8)
    canvas = torch.zeros(3, 32, 32, dtype=torch.uint8)
    canvas[:, :28, :28] = first
    canvas[:, 4:, 4:] = torch.maximum(canvas[:, 4:, 4:], second)
    made = multimnist.compose(first, second, shift=4, resize="bilinear")
    for picture, whole in zip(made, canvas, strict=True):
        wanted = Image.fromarray(whole.numpy()).resize((28, 28), Image.Resampling.BILINEAR)
        assert np.abs(picture.numpy().astype(int) - np.asarray(wanted).astype(int)).max() <= 1


def test_a_digit_may_be_redrawn_where_it_stands() -> None:
    as_it_is, placed = multimnist.load_redraw(), multimnist.load_redraw(placed=True)
    assert torch.equal(as_it_is.test.inputs, placed.test.inputs)
    digit, small = (p.test.targets["lower"].reshape(-1, 28, 28) for p in (as_it_is, placed))
    rows = torch.arange(28) * 32 // 28  # of the canvas, on which the digit begins at 4
    there = rows >= 4
    assert torch.equal(
        small[:, there][:, :, there], digit[:, rows[there] - 4][:, :, rows[there] - 4]
    )
    assert float(small[:, ~there].abs().max()) == 0
    ink = placed.test.inputs[:, 0] * multimnist.DEVIATION + multimnist.MEAN
    assert bool((ink >= small - 1e-5).all())  # the stronger ink stands
