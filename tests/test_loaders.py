"""CelebA, Cityscapes and NYUv2: their layouts, on small files made here; networks and scores."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryJaccardIndex,
    BinaryPrecision,
    BinaryRecall,
    MulticlassJaccardIndex,
)
from typer.testing import CliRunner

from evenhand.app.cli import app
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.data import (
    celeba,
    cityscapes,
    cityscapes_prepared,
    nyuv2,
    nyuv2_official,
    pictures,
    problem,
    unet,
)
from evenhand.schedules import Clock

PAPERS = Path(__file__).parent.parent / "papers"
ATTRIBUTES = ("5_o_Clock_Shadow", "Bald", "Young")


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The folder of all data sets."""
    monkeypatch.setenv("EVENHAND_DATA", str(tmp_path))
    return tmp_path


# CelebA ---------------------------------------------------------------------------------------


@pytest.fixture
def faces(data) -> Path:
    """Twelve faces, each of one colour: 8 to train, 2 to validate, 2 to test."""
    root = data / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 13)]
    lines = ["12", "  ".join(ATTRIBUTES)]
    for k, name in enumerate(names):
        picture = Image.new("RGB", (18, 22), (20 * k, 0, 255))
        picture.save(root / "img_align_celeba" / name, quality=95)
        values = [1 if k >> bit & 1 else -1 for bit in range(3)]
        lines.append(f"{name}  " + " ".join(f"{value:2d}" for value in values))
    (root / celeba.ATTRIBUTES).write_text("\n".join(lines) + "\n")
    parts = [0] * 8 + [1] * 2 + [2] * 2
    those = zip(names, parts, strict=True)
    (root / celeba.PARTITION).write_text("".join(f"{name} {part}\n" for name, part in those))
    return root


def test_faces_come_with_their_attributes_in_the_official_parts(faces) -> None:
    made = celeba.load(batch=4)
    assert tuple(made.tasks) == ATTRIBUTES
    assert (len(made.train), len(made.validation), len(made.test)) == (2, 2, 2)
    ((inputs, targets),) = made.test.in_order(100)
    assert inputs.shape == (2, 3, 64, 64)
    for row, k in enumerate((10, 11)):
        wanted = torch.tensor([20 * k / 255, 0, 1])
        torch.testing.assert_close(inputs[row].mean(dim=(1, 2)), wanted, atol=0.02, rtol=0)
        labels = [float(targets[name][row]) for name in ATTRIBUTES]
        assert labels == [float(k >> bit & 1) for bit in range(3)]


def test_training_batches_are_shuffled_and_whole(faces) -> None:
    train = celeba.load(batch=3).train
    torch.manual_seed(1)
    reds = [torch.cat([x[:, 0].mean(dim=(1, 2)) for x, _ in train]) for _ in range(3)]
    assert [len(red) for red in reds] == [6, 6, 6]
    assert len({tuple(red.tolist()) for red in reds}) == 3
    with pytest.raises(ValueError, match="8 samples do not make one batch of 9"):
        celeba.load(batch=9)


def test_the_official_folders_are_found_too(faces) -> None:
    for name, inner in ((celeba.ATTRIBUTES, "Anno"), (celeba.PARTITION, "Eval")):
        (faces / inner).mkdir()
        (faces / name).rename(faces / inner / name)
    (faces / "Img").mkdir()
    (faces / celeba.IMAGES).rename(faces / "Img" / celeba.IMAGES)
    made = celeba.load(where=faces, batch=8)
    assert next(iter(made.train))[0].shape == (8, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        (celeba.ATTRIBUTES, "000003.jpg  -1  1 -1", "000003.jpg  -1  0 -1", "line 5: 000003.jpg"),
        (celeba.ATTRIBUTES, "000003.jpg  -1  1 -1", "000003.jpg  -1  1", "line 5: 000003.jpg"),
        (celeba.ATTRIBUTES, "12\n", "202599\n", r"has 12 pictures and announces \['202599'\]"),
        (celeba.PARTITION, "000002.jpg 0", "000002.jpg 3", "line 2: a name and 0, 1 or 2"),
        (celeba.PARTITION, "000002.jpg 0\n", "", "which part 000002.jpg belongs to"),
    ],
)
def test_a_list_that_is_laid_out_otherwise_is_named(faces, name, old, new, told) -> None:
    text = (faces / name).read_text()
    assert old in text
    (faces / name).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=told):
        celeba.load(batch=4)


def test_a_missing_or_damaged_picture_is_named(faces) -> None:
    first, second = (faces / celeba.IMAGES / f"0000{k}.jpg" for k in ("11", "12"))
    first.unlink()
    second.write_bytes(b"no picture")
    for number, told in ((0, "000011.jpg is missing"), (1, "000012.jpg holds no picture")):
        with pytest.raises(ValueError, match=told):
            celeba.load(batch=4).test.read(number)  # type: ignore[attr-defined]


def small(tasks) -> object:
    """A network for tests, with BatchNorm and few parameters."""
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return celeba.network(tasks, trunk=lambda: (trunk, 256))


@pytest.mark.parametrize("recipe", ["ius", "io-groups", "mgda-ub"])
def test_recipes_train_on_pictures_that_are_read_meanwhile(faces, recipe) -> None:
    made = replace(celeba.load(batch=4), network=small)
    settings = Settings("celeba", epochs=2, optimizer="adam", observe_every=1)
    runs = [list(training(Job(recipe, "", 3, 1e-3), made, settings).run()) for _ in range(2)]
    assert [replace(r, seconds=0) for r in runs[0]] == [replace(r, seconds=0) for r in runs[1]]
    assert runs[0][2].step == 4
    assert all(math.isfinite(loss) for loss in runs[0][2].losses.values())
    assert set(runs[0][2].metrics) == set(ATTRIBUTES)


# Cityscapes -----------------------------------------------------------------------------------


SCENES = {"train": {"aachen": 6, "bremen": 3, "ulm": 3}, "val": {"munster": 2}}
ROAD, FENCE, RIDER, CAR, PLATE = 7, 13, 25, 26, 1


@pytest.fixture
def streets(data) -> Path:
    """Scenes of 8×16: columns of road, fence, rider, car and void, four of them each but void."""
    root = data / "cityscapes"
    labels = np.repeat(np.array([ROAD, FENCE, RIDER, CAR], np.uint8), 4)[None].repeat(8, 0)
    labels[0, 0] = PLATE
    instances = labels.astype(np.uint16)
    instances[2:6, 8:12] = 1000 * RIDER
    instances[:4, 12:] = 1000 * CAR
    instances[4:, 12:] = 1000 * CAR + 1
    disparity = np.full((8, 16), 1 + 256 * 5, np.uint16)
    disparity[:, 0] = 0
    for split, cities in SCENES.items():
        for city, number in cities.items():
            for k in range(number):
                stem = f"{city}_{k:06d}_000019"
                colour = Image.new("RGB", (16, 8), (0, 10 * k, 255))
                for kind, suffix, image in (
                    ("leftImg8bit", "leftImg8bit", colour),
                    ("gtFine", "gtFine_labelIds", Image.fromarray(labels)),
                    ("gtFine", "gtFine_instanceIds", Image.fromarray(instances)),
                    ("disparity", "disparity", Image.fromarray(disparity)),
                ):
                    folder = root / kind / split / city
                    folder.mkdir(parents=True, exist_ok=True)
                    image.save(folder / f"{stem}_{suffix}.png")
    return root


def test_each_group_of_classes_is_a_task(streets) -> None:
    made = cityscapes.load(batch=2, height=8)
    ((inputs, targets),) = made.test.in_order(100)
    assert inputs.shape == (2, 3, 8, 16)
    assert list(targets) == list(cityscapes.GROUPS)
    for column, group in ((1, "flat"), (5, "construction"), (9, "human"), (13, "vehicle")):
        for name, target in targets.items():
            assert bool((target[:, 1:, column] == float(name == group)).all())
    together = torch.stack(list(targets.values())).sum(dim=0)
    assert float(together[0, 0, 0]) == 0  # void is of no group
    assert float(together.sum()) == 2 * (8 * 16 - 1)
    torch.testing.assert_close(inputs[1, :, 0, 0], torch.tensor([0, 10 / 255, 1]))


def test_whole_cities_validate(streets) -> None:
    held = set()
    for seed in range(8):
        scenes = cityscapes.frames(streets, "train")
        train, validation = cityscapes.apart(scenes, seed)
        cities = [{f.picture.parent.name for f in part} for part in (train, validation)]
        assert not cities[0] & cities[1]
        assert len(train) + len(validation) == 12
        assert len(cities[1]) == 1  # each has a tenth of the scenes and more
        held |= cities[1]
        assert cityscapes.apart(scenes, seed) == (train, validation)
    assert held == {"aachen", "bremen", "ulm"}
    one = [f for f in scenes if f.picture.parent.name == "ulm"]
    with pytest.raises(ValueError, match="all scenes to train are from ulm: two cities"):
        cityscapes.apart(one, 0)


def test_a_scene_has_classes_instances_and_disparity(streets) -> None:
    made = cityscapes.load_scene(batch=1, height=8)
    _, targets = next(iter(made.test.in_order(1)))
    classes = targets["semantic"][0]
    assert int(classes[0, 0]) == cityscapes.VOID
    assert classes[1, ::4].tolist() == [0, 4, 12, 13]  # the official training numbers
    down, right = targets["instance"][0] * 128
    assert bool(down[:, :8].isnan().all())
    assert bool(right[:2, 8:12].isnan().all())  # of a rider, but none in particular
    assert down[2:6, 8].tolist() == [1.5, 0.5, -0.5, -1.5]
    assert right[3, 12:].tolist() == [1.5, 0.5, -0.5, -1.5]
    assert down[:, 12].tolist() == [1.5, 0.5, -0.5, -1.5] * 2
    steps = targets["disparity"][0]
    assert bool(steps[:, 0].isnan().all())
    assert bool((steps[:, 1:] == 5).all())


def test_pixels_without_instance_or_disparity_count_nowhere(streets) -> None:
    made = cityscapes.load_scene(batch=1, height=16)
    inputs, targets = next(iter(made.test.in_order(1)))
    network = cityscapes.scene_network(list(made.tasks), width=2)
    losses = made.losses(network(inputs), targets)
    assert list(losses) == ["semantic", "instance", "disparity"]
    assert all(bool(loss.isfinite()) for loss in losses.values())
    steps = targets["disparity"]
    guess = torch.where(steps.isnan(), 7, 8.0)  # three off where there is one
    assert float(made.tasks["disparity"].loss(guess, steps)) == pytest.approx(
        3 / cityscapes.DEVIATION
    )
    metric = made.tasks["disparity"].metric()
    metric.update(guess, steps)
    assert float(metric.compute()) == pytest.approx(3)
    metric = made.tasks["instance"].metric()
    metric.update(targets["instance"] + 0.5, targets["instance"])
    assert float(metric.compute()) == pytest.approx(64)  # half of 128 full-size pixels
    nowhere = torch.full_like(steps, math.nan)
    assert float(made.tasks["disparity"].loss(guess, nowhere)) == 0


def test_a_smaller_label_is_the_one_under_its_centre() -> None:
    array = np.arange(24).reshape(4, 6)
    assert pictures.nearest(array, 2, 3).tolist() == [[7, 9, 11], [19, 21, 23]]
    assert np.array_equal(pictures.nearest(array, 4, 6), array)


def test_label_pictures_have_one_channel(streets) -> None:
    file = next((streets / "leftImg8bit").rglob("*.png"))
    with pytest.raises(ValueError, match="has 3 dimensions; one number per pixel"):
        pictures.numbers(file)


# NYUv2 ----------------------------------------------------------------------------------------


@pytest.fixture
def rooms(data) -> Path:
    """Twelve rooms to train and two to test, 16×32; the corner has no label of any kind."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 2)):
        for kind in nyuv2.KINDS:
            (data / "nyuv2" / split / kind).mkdir(parents=True)
        for k in range(number):
            normal = generator.normal(size=(16, 32, 3))
            normal /= np.linalg.norm(normal, axis=2, keepdims=True)
            label = generator.integers(0, 13, (16, 32)).astype(np.float64)
            depth = np.full((16, 32, 1), 1.0 + k)
            label[0, 0], depth[0, 0], normal[0, 0] = -1, 0, 0
            image = generator.random((16, 32, 3))
            for kind, array in zip(nyuv2.KINDS, (image, label, depth, normal), strict=True):
                np.save(data / "nyuv2" / split / kind / f"{k}.npy", array)
    return data / "nyuv2"


def test_rooms_have_classes_depths_and_normals(rooms) -> None:
    made = nyuv2.load(batch=2)
    ((inputs, targets),) = made.test.in_order(100)
    image, label, depth, normal = (np.load(rooms / "val" / k / "1.npy") for k in nyuv2.KINDS)
    assert np.allclose(inputs[1].permute(1, 2, 0), image)
    assert targets["segmentation"].dtype == torch.int64
    assert int(targets["segmentation"][1, 0, 0]) == nyuv2.NONE
    assert np.array_equal(targets["segmentation"][1, 1:], label[1:])
    depth[0, 0] = normal[0, 0] = math.nan  # files say 0
    assert np.allclose(targets["depth"][1], depth[..., 0], equal_nan=True)
    assert np.allclose(targets["normal"][1].permute(1, 2, 0), normal, equal_nan=True)
    outputs = nyuv2.network(list(made.tasks), width=2)(inputs)
    assert outputs["segmentation"].shape == (2, 13, 16, 32)
    assert outputs["depth"].shape == (2, 16, 32)
    torch.testing.assert_close(outputs["normal"].norm(dim=1), torch.ones(2, 16, 32))
    losses = made.losses(outputs, targets)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert list(nyuv2.network(["depth"], width=2)(inputs)) == ["depth"]


def test_a_row_of_neighbours_validates(rooms) -> None:
    places = set()
    for seed in range(20):
        train, held = nyuv2.apart(120, seed)
        assert sorted([*train, *held]) == list(range(120))
        assert list(held) == list(range(held[0], held[0] + 12))
        places.add(held[0])
    assert len(places) > 10
    made = nyuv2.load(batch=1)
    assert (len(made.train), len(made.validation)) == (11, 1)
    ((_, targets),) = made.validation.in_order(5)
    seen = {float(y["depth"].nan_to_num().max()) for _, y in made.train}
    assert float(targets["depth"].nan_to_num().max()) not in seen
    assert len(seen) == 11


def test_what_has_no_label_counts_in_no_loss() -> None:
    classes = torch.tensor([[[3, nyuv2.NONE]]])
    logits = torch.full((1, 13, 1, 2), -20.0)
    logits[0, 3, 0, 0] = 20.0
    assert float(nyuv2.class_loss(logits, classes)) == pytest.approx(0, abs=1e-6)
    logits[0, 5, 0, 1] = 13.0  # a class where there is none: it is told that it is wrong
    assert float(nyuv2.class_loss(logits, classes)) == pytest.approx(13 / 26, abs=1e-4)
    nowhere = torch.full((1, 1, 2), math.nan)
    metres = torch.tensor([[[2.0, math.nan]]])
    assert float(nyuv2.depth_loss(torch.tensor([[[2.5, 9.0]]]), metres)) == 0.5
    assert float(nyuv2.depth_loss(torch.ones(1, 1, 2), nowhere)) == 0
    there = torch.tensor([[0.0, 0, 1], [math.nan] * 3]).T.reshape(1, 3, 1, 2)
    aside = torch.tensor([[0.0, 1, 0], [1, 0, 0]]).T.reshape(1, 3, 1, 2)
    assert float(nyuv2.normal_loss(aside, there)) == 1
    assert float(nyuv2.normal_loss(there.nan_to_num(), there)) == 0
    assert nyuv2.angles(aside, there).tolist() == [90]


def test_an_array_of_another_shape_is_named(rooms) -> None:
    np.save(rooms / "val" / "label" / "0.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"label/0.npy has the shape \(3,\), not that of a label"):
        next(iter(nyuv2.load(batch=1).test.in_order(1)))
    (rooms / "val" / "label" / "0.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"label/0.npy cannot be read"):
        next(iter(nyuv2.load(batch=1).test.in_order(1)))


# All ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("celeba", celeba.PAGE),
        ("cityscapes", cityscapes.PAGE),
        ("cityscapes-scene", cityscapes.PAGE),
        ("nyuv2", nyuv2.PAGE),
    ],
)
def test_without_the_files_their_source_is_told_in_one_sentence(data, name, page) -> None:
    with pytest.raises(ValueError, match=re.escape(page)) as caught:
        problem(name)
    assert "\n" not in str(caught.value)
    assert "EVENHAND_DATA" in str(caught.value)
    result = CliRunner().invoke(app, ["compare", name, "--out", str(data / "out")])
    assert result.exit_code == 2
    assert page in " ".join(result.output.split())


@pytest.mark.parametrize("kind", ["labelIds", "disparity"])
def test_a_scene_that_lacks_a_file_is_named(streets, kind) -> None:
    file = next(streets.rglob(f"ulm_000001_*{kind}.png"))
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name} is missing"):
        cityscapes.load_scene(batch=1, height=8)
    if kind == "disparity":
        cityscapes.load(batch=1, height=8)  # needs none


def test_a_room_that_lacks_a_file_is_named(rooms) -> None:
    (rooms / "val" / "normal" / "1.npy").unlink()
    with pytest.raises(ValueError, match=r"val/normal/1.npy is missing"):
        nyuv2.load(batch=1)


@pytest.mark.parametrize("recipe", ["io", "gradnorm", "pcgrad"])
def test_recipes_train_on_dense_tasks(streets, rooms, recipe) -> None:
    for made, network in (
        (cityscapes.load(batch=5, height=16), cityscapes.group_network),
        (cityscapes.load_scene(batch=5, height=16), cityscapes.scene_network),
        (nyuv2.load(batch=5), nyuv2.network),
    ):
        small = replace(made, network=partial(network, width=2))
        settings = Settings(made.name, epochs=1, optimizer="adam", observe_every=1)
        *_, record = training(Job(recipe, "", 0, 1e-3), small, settings).run()
        assert set(record.metrics) == set(made.tasks)
        assert all(math.isfinite(loss) for loss in record.validation.values())
        assert record.path is not None
        assert record.path > 0


# Prepared Cityscapes --------------------------------------------------------------------------


@pytest.fixture(params=["label", "label_7"])
def prepared(data, request) -> Path:
    """Twelve frames to train and two to test, 16×32; the corner has neither class nor depth."""
    generator = np.random.default_rng(1)
    for split, number in (("train", 12), ("val", 2)):
        root = data / "cityscapes-prepared" / split
        for kind in ("image", request.param, "depth"):
            (root / kind).mkdir(parents=True)
        for k in range(number):
            label = generator.integers(0, 7, (16, 32)).astype(np.float64)
            depth = np.full((16, 32, 1), 0.01 * (1 + k))
            label[0, 0], depth[0, 0] = -1, 0
            np.save(root / "image" / f"{k}.npy", generator.random((16, 32, 3)))
            np.save(root / request.param / f"{k}.npy", label)
            np.save(root / "depth" / f"{k}.npy", depth)
    return data / "cityscapes-prepared"


def test_prepared_frames_have_classes_and_inverse_depths(prepared) -> None:
    made = cityscapes_prepared.load(batch=2)
    ((inputs, targets),) = made.test.in_order(100)
    name = cityscapes_prepared.labels(prepared / "val")
    image, label = (np.load(prepared / "val" / kind / "1.npy") for kind in ("image", name))
    assert np.allclose(inputs[1].permute(1, 2, 0), image)
    assert targets["segmentation"].dtype == torch.int64
    assert int(targets["segmentation"][1, 0, 0]) == cityscapes_prepared.NONE
    assert np.array_equal(targets["segmentation"][1, 1:], label[1:])
    torch.testing.assert_close(targets["depth"][1, 1], torch.full((32,), 0.02))
    assert float(targets["depth"][1, 0, 0]) == 0
    outputs = cityscapes_prepared.network(list(made.tasks), width=2)(inputs)
    assert outputs["segmentation"].shape == (2, 7, 16, 32)
    assert outputs["depth"].shape == (2, 16, 32)
    losses = made.losses(outputs, targets)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    (held,) = ({float(y["depth"].max()) for _, y in made.validation.in_order(1)},)
    seen = {float(depth) for _, y in made.train for depth in y["depth"].amax(dim=(1, 2))}
    assert len(held) == 1
    assert not held & seen


def test_pixels_without_class_or_depth_count_nowhere_in_prepared_frames() -> None:
    classes = torch.tensor([[[3, cityscapes_prepared.NONE]]])
    scores = torch.zeros(1, 7, 1, 2)
    scores[0, 5, 0, 1] = 50.0
    loss = cityscapes_prepared.class_loss
    assert float(loss(scores, classes)) == pytest.approx(math.log(7))
    assert float(loss(scores, torch.full_like(classes, cityscapes_prepared.NONE))) == 0
    depth = torch.tensor([[[0.2, 0.0]]])
    guess = torch.tensor([[[0.5, 9.0]]])
    assert float(cityscapes_prepared.depth_loss(guess, depth)) == pytest.approx(0.3)
    assert float(cityscapes_prepared.depth_loss(guess, torch.zeros(1, 1, 2))) == 0


def test_what_is_wrong_in_prepared_frames_is_named(prepared) -> None:
    name = cityscapes_prepared.labels(prepared / "val")
    np.save(prepared / "val" / name / "0.npy", np.full((16, 32), 18.0))
    with pytest.raises(ValueError, match=rf"{name}/0.npy has the class 18; there should be 7"):
        next(iter(cityscapes_prepared.load(batch=1).test.in_order(1)))
    (prepared / "train" / "depth" / "3.npy").unlink()
    with pytest.raises(ValueError, match=r"train/depth/3.npy is missing.*lorenmt/mtan"):
        cityscapes_prepared.load(batch=1)


# NYUv2 as published ---------------------------------------------------------------------------


@pytest.fixture
def published(data) -> Path:
    """Twelve rooms to train and two to test, 30×40, in MATLAB's files; a corner has no label."""
    root = data / "nyuv2-official"
    root.mkdir()
    generator = np.random.default_rng(2)
    number, height, width = 14, 30, 40
    images = generator.integers(0, 256, (number, height, width, 3)).astype(np.uint8)
    images[:] = (10 * np.arange(number))[:, None, None, None].astype(np.uint8)
    labels = generator.integers(1, 895, (number, height, width)).astype(np.uint16)
    labels[:, :10, :10] = 0
    depths = np.full((number, height, width), 2.0, np.float32)
    depths[:, :, 20:] = 5.0
    with h5py.File(root / nyuv2_official.LABELED, "w") as stored:  # MATLAB's order reversed
        stored["images"] = images.transpose(0, 3, 2, 1)
        stored["labels"] = labels.transpose(0, 2, 1)
        stored["depths"] = depths.transpose(0, 2, 1)
    test = np.array([[3], [8]])
    train = np.array([[k] for k in range(1, 15) if k not in test])
    savemat(root / "splits.mat", {"trainNdxs": train, "testNdxs": test})
    forty = np.arange(894) % 40 + 1
    savemat(root / "classMapping40.mat", {"mapClass": forty[None]})
    thirteen = {"labels13": np.arange(40) % 13 + 1, "names": "as published"}
    savemat(root / "class13Mapping.mat", {"classMapping13": thirteen})
    return root


@pytest.mark.parametrize("classes", [13, 40])
def test_published_rooms_are_read_from_matlabs_files(published, classes) -> None:
    made = nyuv2_official.load(batch=2, classes=classes, height=30)
    ((inputs, targets),) = made.test.in_order(100)
    assert inputs.shape == (2, 3, 30, 40)
    torch.testing.assert_close(inputs[:, 0, 0, 0], torch.tensor([20 / 255, 70 / 255]))
    with h5py.File(published / nyuv2_official.LABELED) as stored:
        label = int(stored["labels"][7, 33, 12])  # column 33 of row 12 of the 8th picture
    wanted = (label - 1) % 40
    assert int(targets["segmentation"][1, 12, 33]) == (wanted if classes == 40 else wanted % 13)
    assert bool((targets["segmentation"][:, :10, :10] == nyuv2.NONE).all())
    assert int((targets["segmentation"] == nyuv2.NONE).sum()) == 2 * 100
    assert targets["depth"][0, 4, 18:22].tolist() == [2, 2, 5, 5]
    outputs = nyuv2_official.network(list(made.tasks), 2, classes)(inputs)
    losses = made.losses(outputs, targets)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    smaller = nyuv2_official.load(batch=2, classes=classes, height=15)
    ((inputs, targets),) = smaller.test.in_order(100)
    assert inputs.shape == (2, 3, 15, 20)
    assert targets["depth"][0, 4, 8:12].tolist() == [2, 2, 5, 5]


def test_published_rooms_stand_on_one_side_each(published) -> None:
    made = nyuv2_official.load(batch=1, height=30)
    shades = [
        sorted(round(float(x[0, 0, 0, 0]) * 25.5) for x, _ in part)
        for part in (made.train, made.validation.in_order(1), made.test.in_order(1))
    ]
    assert shades[2] == [2, 7]
    assert len(shades[1]) == 1
    assert sorted(shade for part in shades for shade in part) == list(range(14))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("splits.mat", None, r"splits.mat is missing: fetch it from https://cs.nyu.edu"),
        ("class13Mapping.mat", None, r"class13Mapping.mat is missing.*ankurhanda"),
        ("splits.mat", {"trainNdxs": [[1]]}, r"splits.mat has no testNdxs"),
        (
            "splits.mat",
            {"trainNdxs": [[1]], "testNdxs": [[1]]},
            "picture 1 is to train and to test",
        ),
        ("classMapping40.mat", {"mapClass": [[1, 2]]}, "maps 2 classes, not 894"),
        ("classMapping40.mat", {"other": [[1]]}, "has no mapClass"),
    ],
)
def test_what_is_wrong_in_matlabs_files_is_named(published, name, content, told) -> None:
    (published / name).unlink()
    if content is not None:
        savemat(published / name, content)
    with pytest.raises(ValueError, match=told):
        nyuv2_official.load(batch=1, height=30)


def test_a_labelled_file_that_is_laid_out_otherwise_is_named(published) -> None:
    file = published / nyuv2_official.LABELED
    with h5py.File(file, "a") as stored:
        del stored["depths"]
    with pytest.raises(ValueError, match=r"labeled.mat has no depths with 3 dimensions"):
        next(iter(nyuv2_official.load(batch=1, height=30).test.in_order(1)))
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"labeled.mat is no HDF5 \(MATLAB 7.3\) file"):
        next(iter(nyuv2_official.load(batch=1, height=30).test.in_order(1)))
    with pytest.raises(ValueError, match="classes=894: must be 13 or 40"):
        nyuv2_official.load(classes=894)
    with pytest.raises(ValueError, match="height=31: must be a multiple of 3"):
        nyuv2_official.load(height=31)


# Networks and scores --------------------------------------------------------------------------


def test_networks_have_the_released_codes_sizes() -> None:
    with torch.device("meta"):
        trunks = {"cnn": celeba.convolutional()[0], "resnet": celeba.resnet18()[0]}
        trunks["unet"] = unet.UNet()
        sizes = {name: sum(p.numel() for p in t.parameters()) for name, t in trunks.items()}
        features = {name: t(torch.empty(2, 3, 64, 64)).shape for name, t in trunks.items()}
    assert sizes == {"cnn": 5_177_664, "resnet": 11_168_832, "unet": 17_267_328}
    assert features == {"cnn": (2, 512), "resnet": (2, 2_048), "unet": (2, 64, 64, 64)}


def test_a_u_net_takes_any_size_and_keeps_it() -> None:
    outputs = unet.network({"one": 1, "many": 5}, width=2)(torch.randn(2, 3, 18, 35))
    assert outputs["one"].shape == (2, 18, 35)
    assert outputs["many"].shape == (2, 5, 18, 35)


@pytest.mark.parametrize(
    ("quantity", "reference"),
    [
        ("precision", BinaryPrecision()),
        ("recall", BinaryRecall()),
        ("F1", BinaryF1Score()),
        ("IoU", BinaryJaccardIndex()),
    ],
)
def test_counted_scores_are_torchmetrics(quantity, reference) -> None:
    metric = pictures.Counted(quantity)
    for _ in range(3):
        logits, target = torch.randn(5, 4), torch.randint(2, (5, 4))
        metric.update(logits, target.float())
        reference.update((logits >= 0).long(), target)
    torch.testing.assert_close(metric.compute(), reference.compute().double(), rtol=1e-6, atol=0)


def test_nothing_to_find_and_nothing_found_scores_zero() -> None:
    for quantity in pictures.QUANTITIES:
        metric = pictures.Counted(quantity)
        metric.update(torch.full((4,), -1.0), torch.zeros(4))
        assert float(metric.compute()) == 0


def test_overlap_is_torchmetrics_without_void() -> None:
    metric, reference = pictures.Overlap(5), MulticlassJaccardIndex(5, ignore_index=255)
    for _ in range(3):
        scores, target = torch.randn(2, 5, 3, 3), torch.randint(4, (2, 3, 3))
        scores[:, 4] = -9  # a class that never occurs
        target[0, 0, 0] = 255
        metric.update(scores, target)
        reference.update(scores, target)
    torch.testing.assert_close(metric.compute(), reference.compute().double(), rtol=1e-6, atol=0)


# The papers' scripts --------------------------------------------------------------------------


def script(paper: str, monkeypatch) -> ModuleType:
    """papers/<paper>/official.py as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("large", "ledger", "best"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("official", PAPERS / paper / "official.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_setup_runs_what_its_table_names(faces, streets, rooms, monkeypatch) -> None:
    asked = argparse.Namespace(readers=0, batch=1, only=None, seeds=2, epochs=3)
    for paper, number in (("pascal2021", 8), ("sener2018", 8)):
        setups = script(paper, monkeypatch).SETUPS
        cells = setups["celeba"].cells(asked)
        assert len(cells) == 2 * number  # a single-task network for each of three attributes
        assert {cell["seed"] for cell in cells[:number]} == {0}
        assert all(cell["epochs"] == 3 for cell in cells)
        assert all(setup.cells(asked) for setup in setups.values())


def test_pascals_groups_and_gradnorm_are_the_released_ones(monkeypatch) -> None:
    setup = script("pascal2021", monkeypatch).SETUPS["celeba"]
    tasks = tuple(f"t{k}" for k in range(40))
    for name, number, size, apart in (("ius-groups-5", 8, 5, False), ("io-groups-10", 4, 10, True)):
        parts = setup.recipe(name).compose(tasks)[""]
        phases = parts.schedule(Clock(seed=3), tasks)
        assert [len(phase.tasks) for phase in phases] == [size] * number
        assert sorted(t for phase in phases for t in phase.tasks) == sorted(tasks)
        assert parts.own_moments == apart
    weighting = setup.recipe("gradnorm-conv").compose(tasks)[""].weighting
    assert weighting.alpha == 0.2
    trunk = celeba.convolutional()[0]
    (chosen,) = weighting.at(list(trunk.parameters()))
    assert chosen is [m for m in trunk if isinstance(m, nn.Conv2d)][-1].weight
    assert setup.recipe("sus").name == "sus"


def test_a_run_is_scored_by_all_that_the_paper_reports(faces, monkeypatch) -> None:
    official = script("pascal2021", monkeypatch)
    setup = replace(official.SETUPS["celeba"], adapt=lambda p: replace(p, network=small))
    large = sys.modules["large"]
    asked = argparse.Namespace(readers=0, batch=4, only="ius", seeds=1, epochs=1)
    (cell,) = setup.cells(asked)
    values = large.Run(setup, 0, "cpu", faces / "runs")(cell)
    assert set(values["test"]) == {"F1", "precision", "recall", "error %"}
    assert all(set(tasks) == set(ATTRIBUTES) for tasks in values["test"].values())
    assert json.loads(json.dumps(values)) == values
    again = large.Run(setup, 0, "cpu", faces / "runs")(cell)  # it is resumed at its end
    assert again["test"] == values["test"]
    means = large._joined([values])
    assert means["error %"] == pytest.approx(sum(values["test"]["error %"].values()) / 3)
