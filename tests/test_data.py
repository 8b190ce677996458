"""Problems: what they promise of their samples, and the stream that draws them."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from evenhand.data import SOURCES, Problem, Split, Stream, labelled, problem, scans
from evenhand.data.digits import DIGITS, FAINT
from evenhand.data.quadrants import HALF_SIDE


@pytest.fixture(scope="module", params=[s.name for s in SOURCES if not s.by_hand])
def any_problem(request: pytest.FixtureRequest) -> Problem:
    return problem(request.param)


@pytest.fixture(scope="module")
def digits() -> Problem:
    return problem("digits")


@pytest.fixture(scope="module")
def quadrants() -> Problem:
    return problem("quadrants")


def parts(of: Problem) -> dict[str, Split]:
    assert isinstance(of.train, Split)
    return {"train": of.train, "validation": of.validation, "test": of.test}


def equal(a: Split, b: Split) -> bool:
    return torch.equal(a.inputs, b.inputs) and all(
        torch.equal(a.targets[task], b.targets[task]) for task in a.targets
    )


# Every source ---------------------------------------------------------------------------------


def test_a_source_is_the_problem_it_announces(any_problem: Problem) -> None:
    (source,) = [source for source in SOURCES if source.name == any_problem.name]
    assert source.summary == any_problem.summary
    assert source.citation == any_problem.citation


def test_a_problem_is_determined_by_its_seed(any_problem: Problem) -> None:
    again, other = problem(any_problem.name, seed=0), problem(any_problem.name, seed=1)
    for name, split in parts(any_problem).items():
        assert equal(split, parts(again)[name])
        assert not equal(split, parts(other)[name])


def test_loading_leaves_the_global_stream_alone(any_problem: Problem) -> None:
    before = torch.get_rng_state()
    problem(any_problem.name, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_losses_and_metrics_take_what_the_network_gives(any_problem: Problem) -> None:
    network = any_problem.network(list(any_problem.tasks))
    for split in parts(any_problem).values():
        inputs, targets = split.take(torch.arange(64))
        outputs = network(inputs)
        losses = any_problem.losses(outputs, targets)
        assert list(losses) == list(any_problem.tasks)
        for name, task in any_problem.tasks.items():
            assert losses[name].shape == ()
            assert torch.isfinite(losses[name])
            metric = task.metric()
            metric.update(*task.labels.taken(outputs[name].detach(), targets[name]))
            assert math.isfinite(float(metric.compute()))


def test_losses_are_means_over_the_samples(any_problem: Problem) -> None:
    network = any_problem.network(list(any_problem.tasks)).eval()
    inputs, targets = any_problem.test.take(torch.arange(6))
    together = any_problem.losses(network(inputs), targets)
    for name in any_problem.tasks:
        each = [
            any_problem.losses(network(inputs[i : i + 1]), {name: targets[name][i : i + 1]})[name]
            for i in range(6)
        ]
        torch.testing.assert_close(together[name], torch.stack(each).mean())


def test_a_network_has_the_heads_that_are_asked_for(any_problem: Problem) -> None:
    for task in any_problem.tasks:
        network = any_problem.network([task])
        assert list(network(any_problem.test.inputs[:2])) == [task]


def test_an_unknown_problem_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'digit'; did you mean digits"):
        problem("digit")


# digits ---------------------------------------------------------------------------------------


def right_digits(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.targets["redraw"]}


def left_digits(split: Split) -> set[bytes]:
    # Four columns of the left digit stand alone; its others are partly under the right one.
    return {picture[:, :4].contiguous().numpy().tobytes() for picture in split.inputs}


def test_no_digit_stands_on_two_sides(digits: Problem) -> None:
    seen = [right_digits(split) for split in parts(digits).values()]
    assert sum(map(len, seen)) == len(set.union(*seen))
    # Several pairs were drawn of every digit; else the test above would be no test.
    assert all(len(images) < len(s) for images, s in zip(seen, parts(digits).values(), strict=True))


def test_left_and_right_of_a_pair_come_from_the_same_side(digits: Problem) -> None:
    halves = {
        name: {
            (FAINT * image.reshape(8, 8)[:, :4]).contiguous().numpy().tobytes()
            for image in split.targets["redraw"]
        }
        for name, split in parts(digits).items()
    }
    for (name, split), count in zip(parts(digits).items(), DIGITS, strict=True):
        left = left_digits(split)
        # So many digits of a side are also a right one; what two sides share are left halves that
        # happen to be equal in different digits.
        share = 1 - math.exp(-len(split) / count)
        assert len(left & halves[name]) == pytest.approx(share * len(left), rel=0.05)
        for other in halves.keys() - {name}:
            assert len(left & halves[other]) < 0.02 * len(left)


def test_digits_shapes_and_ranges(digits: Problem) -> None:
    sizes = {name: len(split) for name, split in parts(digits).items()}
    assert sizes == {"train": 1_600, "validation": 800, "test": 800}
    for split in parts(digits).values():
        assert split.inputs.shape == (len(split), 8, 12)
        assert split.targets["redraw"].shape == (len(split), 64)
        assert 0 <= float(split.inputs.min()) <= float(split.inputs.max()) == 1
        for task in ("left", "right"):
            assert split.targets[task].dtype == torch.int64
            assert set(split.targets[task].tolist()) == set(range(10))


def test_a_picture_shows_the_stronger_ink(digits: Problem) -> None:
    picture, right = digits.test.inputs, digits.test.targets["redraw"].reshape(-1, 8, 8)
    assert bool((picture[:, :, 4:] >= right).all())
    assert torch.equal(picture[:, :, 8:], right[:, :, 4:])
    assert float(picture[:, :, :4].max()) == pytest.approx(FAINT)
    hidden = picture[:, :, 4:8] > right[:, :, :4]
    assert float(picture[:, :, 4:8][hidden].max()) == pytest.approx(FAINT)
    assert 0.1 < float(hidden.float().mean()) < 0.5


def test_redrawing_is_scored_per_pixel_and_learned_per_picture(digits: Problem) -> None:
    task, pixels = digits.tasks["redraw"], digits.test.targets["redraw"]
    metric = task.metric()
    metric.update(pixels + 0.5, pixels)
    assert float(metric.compute()) == pytest.approx(0.25)
    # 64 pixels, each half off: −log of a Gaussian of deviation ½, up to its constant.
    assert float(task.loss(pixels + 0.5, pixels)) == pytest.approx(64 * 0.25 / (2 * 0.5**2))


def test_accuracy_counts_samples_not_classes(digits: Problem) -> None:
    metric = digits.tasks["left"].metric()
    metric.update(torch.eye(10)[[0, 0, 0, 1]], torch.tensor([0, 0, 0, 2]))
    assert float(metric.compute()) == pytest.approx(0.75)


def test_importing_digits_loads_no_extra() -> None:
    code = (
        "import sys, evenhand.data.digits, evenhand.data.quadrants;"
        "sys.exit(bool({'sklearn', 'torchmetrics'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# scans ----------------------------------------------------------------------------------------


def test_one_scan_of_eight_has_been_read_and_every_one_that_tests() -> None:
    made = problem("scans")
    counts = made.label_counts()["digit"]
    assert [count.samples for count in counts.values()] == [1079, 359, 359]
    for part in ("train", "validation"):
        assert counts[part].used / counts[part].samples == pytest.approx(1 / 8, abs=0.03)
    assert counts["test"].used == 359
    for task in ("clean", "slant"):
        assert all(c.left_out == 0 for c in made.label_counts()[task].values())


def test_a_scan_is_its_digit_and_noise() -> None:
    made = problem("scans")
    noise = torch.cat([s.inputs.flatten(1) - s.targets["clean"] for s in parts(made).values()])
    assert float(noise.std()) == pytest.approx(scans.NOISE, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    clean = made.test.targets["clean"].view(-1, 8, 8)
    assert torch.allclose(made.test.targets["slant"], scans.slants(clean), atol=1e-3)
    mirrored = scans.slants(clean.flip(2))
    assert torch.allclose(mirrored, -scans.slants(clean), atol=1e-3)


def test_noise_and_labels_are_the_same_in_every_split() -> None:
    """By picture, so that a picture does not come clean by being drawn again."""
    seen: dict[bytes, tuple[bytes, bool]] = {}
    for seed in range(2):
        made = problem("scans", seed)
        for split in (made.train, made.validation):
            labelled = (split.targets["digit"] >= 0).tolist()
            for x, clean, known in zip(split.inputs, split.targets["clean"], labelled, strict=True):
                told = (x.numpy().tobytes(), known)
                assert seen.setdefault(clean.numpy().tobytes(), told) == told


def test_the_losses_of_scans_are_in_units_far_apart() -> None:
    """That the tool tells so, and that the choice matters, is what the problem is for."""
    made = problem("scans")
    torch.manual_seed(0)
    network = made.network(tuple(made.tasks))
    losses = made.losses(network(made.validation.inputs), made.validation.targets)
    assert losses["slant"] / losses["clean"] > 100


# quadrants ------------------------------------------------------------------------------------


def test_quadrants_has_the_papers_parameter_counts(quadrants: Problem) -> None:
    blocks = quadrants.network(["quadrant", "circle"]).blocks()
    assert sum(p.numel() for p in blocks.shared) == 526_848
    assert sum(p.numel() for p in blocks.own["quadrant"]) == 527_364
    assert sum(p.numel() for p in blocks.own["circle"]) == 525_825


def test_quadrants_are_standardised_on_the_training_part(quadrants: Problem) -> None:
    sizes = {name: len(split) for name, split in parts(quadrants).items()}
    assert sizes == {"train": 5_600, "validation": 1_400, "test": 3_000}
    train = quadrants.train.inputs
    torch.testing.assert_close(train.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(dim=0), torch.ones(2))
    assert float(quadrants.test.inputs.mean().abs()) > 1e-4


def test_quadrants_are_quadrants_and_the_circle_a_circle(quadrants: Problem) -> None:
    for split in parts(quadrants).values():
        # Standardising shifts by less than 0.05 and scales by √3 / half-side, nearly.
        x, y = (split.inputs * HALF_SIDE / math.sqrt(3)).unbind(dim=1)
        far = (x.abs() > 0.1) & (y.abs() > 0.1)
        angle = torch.atan2(y, x).remainder(2 * math.pi)
        expected = (angle / (math.pi / 2)).long()
        assert torch.equal(expected[far], split.targets["quadrant"][far])
        radius = torch.hypot(x, y)
        clear = (radius - 1).abs() > 0.1
        assert torch.equal((radius < 1).long()[clear], split.targets["circle"][clear])
        share = float(split.targets["circle"].float().mean())
        assert share == pytest.approx(math.pi / 16, abs=0.03)


def test_the_circles_metric_is_weighted_recall_of_logits(quadrants: Problem) -> None:
    # All logits lie in [0, 1]: taken for probabilities, the first two would count as outside.
    metric = quadrants.tasks["circle"].metric()
    metric.update(torch.tensor([0.1, 0.4, 0.9, 0.2]), torch.tensor([1, 1, 1, 0]))
    assert float(metric.compute()) == pytest.approx(0.75)


def test_weighted_recall_is_the_accuracy(quadrants: Problem) -> None:
    metric = quadrants.tasks["quadrant"].metric()
    metric.update(torch.eye(4)[[0, 0, 0, 1, 3]], torch.tensor([0, 0, 0, 2, 3]))
    assert float(metric.compute()) == pytest.approx(0.8)


# Labels and splits ----------------------------------------------------------------------------


def test_integers_are_missing_where_the_task_says_so_and_else_never() -> None:
    assert labelled(torch.tensor([0, -1, 3, -100])).tolist() == [True] * 4
    assert labelled(torch.tensor([0, -1, 3, -100]), missing=-1).tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert labelled(torch.tensor([[0, 1], [0, -1]]), missing=-1).tolist() == [True, False]


def test_labelled_floats_have_no_nan_anywhere() -> None:
    target = torch.tensor([[0.0, -1.0], [math.nan, 1.0], [math.inf, 2.0]])
    assert labelled(target).tolist() == [True, False, True]
    assert labelled(target[:, 0]).tolist() == [True, False, True]


def test_labelled_booleans_always_have_a_label() -> None:
    assert labelled(torch.tensor([True, False])).tolist() == [True, True]


def test_losses_leave_out_samples_without_a_label(digits: Problem) -> None:
    inputs, targets = digits.train.take(torch.arange(8))
    outputs = digits.network(list(digits.tasks))(inputs)
    full = digits.losses(
        {t: o[:5] for t, o in outputs.items()}, {t: y[:5] for t, y in targets.items()}
    )
    left, redraw = targets["left"].clone(), targets["redraw"].clone()
    left[5:], redraw[5:, 3] = -1, math.nan
    tasks = {t: replace(task, missing=-1) for t, task in digits.tasks.items()}
    digits = replace(digits, tasks=tasks)
    found = digits.losses(
        outputs, {"left": left, "redraw": redraw, "right": left.clone().fill_(-1)}
    )
    assert list(found) == ["left", "redraw"]
    torch.testing.assert_close(found["left"], full["left"])
    found = digits.losses(outputs, {"left": left.fill_(-1), "redraw": redraw})
    assert list(found) == ["redraw"]
    torch.testing.assert_close(found["redraw"], full["redraw"])


def test_infinite_targets_are_labels(digits: Problem) -> None:
    """Their sum is NaN, but none of them is."""
    inputs, targets = digits.train.take(torch.arange(8))
    outputs = digits.network(list(digits.tasks))(inputs)
    redraw = targets["redraw"].clone()
    redraw[0, 0], redraw[1, 0] = math.inf, -math.inf
    assert digits.losses(outputs, {"redraw": redraw})["redraw"].isinf()


def test_a_split_needs_a_target_for_every_sample() -> None:
    with pytest.raises(ValueError, match=r"3 inputs, but targets have \{'a': 3, 'b': 2\} samples"):
        Split(torch.zeros(3, 2), {"a": torch.zeros(3), "b": torch.zeros(2)})


def test_a_split_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="0 inputs"):
        Split(torch.zeros(0, 2), {"a": torch.zeros(0)})


def test_a_split_in_order_is_all_of_it() -> None:
    split = counted(10)
    batches = list(split.in_order(4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), split.inputs)
    assert torch.equal(torch.cat([y["a"] for _, y in batches]), split.targets["a"])


# The stream -----------------------------------------------------------------------------------


def counted(n: int) -> Split:
    """Sample i is i, its target 10 i."""
    numbers = torch.arange(n)
    return Split(numbers, {"a": 10 * numbers})


def epoch(stream: Stream, number: int) -> list[torch.Tensor]:
    first = number * len(stream)
    return [stream.batch(k)[0] for k in range(first, first + len(stream))]


@given(n=st.integers(1, 40), size=st.integers(1, 12), seed=st.integers(0, 2**62))
def test_an_epoch_is_a_permutation(n: int, size: int, seed: int) -> None:
    stream = Stream(counted(n), size, seed)
    assert len(stream) == math.ceil(n / size)
    for number in range(3):
        batches = epoch(stream, number)
        assert sorted(torch.cat(batches).tolist()) == list(range(n))
        assert all(len(batch) == size for batch in batches[:-1])


def test_epochs_have_different_orders_and_seeds_too() -> None:
    stream, other = Stream(counted(50), 50, seed=0), Stream(counted(50), 50, seed=1)
    orders = [stream.batch(0)[0], stream.batch(1)[0], other.batch(0)[0]]
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_targets_stay_with_their_inputs() -> None:
    for replacement in (False, True):
        inputs, targets = Stream(counted(20), 6, 0, replacement=replacement).batch(2)
        assert torch.equal(targets["a"], 10 * inputs)


def test_drop_last_leaves_out_the_smaller_batch() -> None:
    stream = Stream(counted(11), 4, 0, drop_last=True)
    assert len(stream) == 2
    for number in range(3):
        drawn = torch.cat(epoch(stream, number))
        assert len(drawn) == len(set(drawn.tolist())) == 8


def test_drop_last_keeps_all_of_what_divides() -> None:
    assert len(Stream(counted(12), 4, 0, drop_last=True)) == 3


def test_replacement_draws_each_batch_from_the_whole() -> None:
    stream = Stream(counted(11), 4, 0, replacement=True)
    assert len(stream) == 2  # N_b = floor(N / batch)
    batches = [stream.batch(k)[0] for k in range(400)]
    assert all(len(batch) == 4 for batch in batches)
    assert any(len(set(batch.tolist())) < 4 for batch in batches)
    counts = torch.cat(batches).bincount(minlength=11)
    # 1,600 draws, 145 expected of each, standard deviation 11.5.
    assert 90 < int(counts.min()) <= int(counts.max()) < 205


@given(
    k=st.integers(0, 60),
    before=st.lists(st.integers(0, 60), max_size=5),
    replacement=st.booleans(),
    drop_last=st.booleans(),
)
def test_a_batch_depends_on_seed_and_number_alone(
    k: int, before: list[int], replacement: bool, drop_last: bool
) -> None:
    used, fresh = (Stream(counted(23), 5, 7, replacement, drop_last) for _ in range(2))
    for number in before:
        used.batch(number)
    assert torch.equal(used.batch(k)[0], fresh.batch(k)[0])


def test_a_stream_neither_reads_nor_moves_the_global_one() -> None:
    stream = Stream(counted(9), 3, 0)
    before = torch.get_rng_state()
    first = stream.batch(0)[0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, Stream(counted(9), 3, 0).batch(0)[0])


@pytest.mark.parametrize("replacement", [False, True])
def test_the_index_says_which_samples_a_batch_has(replacement: bool) -> None:
    stream = Stream(counted(11), 4, 0, replacement)
    for number in (5, 0, 4):
        assert torch.equal(stream.index(number), stream.batch(number)[0])


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_a_sample(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size}: must be at least 1"):
        Stream(counted(5), size, 0)


def test_an_epoch_has_a_batch() -> None:
    with pytest.raises(ValueError, match="smaller than one batch"):
        Stream(counted(3), 4, 0, drop_last=True)


# The stream over a loader ---------------------------------------------------------------------


def loader(n: int = 20, size: int = 4, shuffle: bool = True) -> DataLoader:
    def collate(samples: list[tuple[torch.Tensor]]) -> tuple[torch.Tensor, dict]:
        numbers = torch.stack([number for (number,) in samples])
        return numbers, {"a": 10 * numbers}

    return DataLoader(
        TensorDataset(torch.arange(n)), batch_size=size, shuffle=shuffle, collate_fn=collate
    )


def test_a_loader_is_drawn_in_shuffled_epochs() -> None:
    stream = Stream(loader(), 99, 0)  # the batch size is the loader's
    assert len(stream) == 5
    orders = [torch.cat(epoch(stream, number)).tolist() for number in range(3)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_a_loader_resumes_in_the_middle_of_an_epoch() -> None:
    through = Stream(loader(), 4, 7)
    drawn = [through.batch(k)[0] for k in range(12)]
    for k in (0, 3, 7, 9, 10):
        resumed = Stream(loader(), 4, 7)
        for number in range(k, 12):
            assert torch.equal(resumed.batch(number)[0], drawn[number])


def test_a_loader_may_be_asked_for_an_earlier_batch() -> None:
    stream = Stream(loader(), 4, 7)
    first, third = stream.batch(0)[0], stream.batch(2)[0]
    assert torch.equal(stream.batch(0)[0], first)
    assert torch.equal(stream.batch(2)[0], third)


def test_a_loader_gives_the_same_batch_when_asked_twice() -> None:
    stream = Stream(loader(), 4, 7)
    assert torch.equal(stream.batch(1)[0], stream.batch(1)[0])


def test_a_loader_leaves_the_global_stream_alone() -> None:
    stream = Stream(loader(), 4, 0)
    before = torch.get_rng_state()
    epoch(stream, 0)
    epoch(stream, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loaders_index_is_drawn_again_and_alike_at_every_run() -> None:
    stream, again = Stream(loader(), 4, 7), Stream(loader(), 4, 7)
    again.batch(2)
    indices = [stream.index(k) for k in range(5)]
    assert sorted(torch.cat(indices).tolist()) == list(range(20))
    assert torch.equal(again.index(3), indices[3])


def test_plain_batches_have_no_index() -> None:
    with pytest.raises(ValueError, match="number their samples"):
        Stream([(torch.zeros(1), {})], 1, 0).index(0)


def test_a_list_of_batches_is_a_loader() -> None:
    batches = [(torch.tensor([i]), {"a": torch.tensor([i])}) for i in range(3)]
    assert [int(Stream(batches, 1, 0).batch(k)[0]) for k in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_loader_must_keep_its_promise() -> None:
    class Boaster(list):
        def __len__(self) -> int:
            return 3

    stream = Stream(Boaster([(torch.zeros(1), {})]), 1, 0)
    stream.batch(0)
    with pytest.raises(ValueError, match="promised more batches than its 1"):
        stream.batch(1)
