"""The example for Flower: its averages against dense matrices, what it refuses, and one simulation where Flower is.

Flower pins Ray and other libraries to releases that are not those of constraints.txt. In an environment of its own:

    python -m pip install -e '.[federated,train,test]'
    python -m pytest tests/examples/test_federated.py -m 'slow or not slow'
"""

import importlib
import importlib.util
import json
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import sentiment_rows, write_jsonl
from ttlora.tensor_train import TensorTrain, TTShape, Update, even_core_size

# Flower reads it when it is imported
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
# the scripts there find each other when they are run
sys.path.append(str(Path(__file__).parents[2] / "examples" / "federated"))
averages, training, updates, federated = map(importlib.import_module, ("averages", "training", "updates", "federated"))

HEAD = 7
SHAPES = [
    ((3, 4, 6, 2), 12, 12, 2),
    ((3, 4, 6, 2), 12, 12, [2, 5, 1]),
    ((4, 3, 5), 12, 5, 3),
    ((5, 6), 5, 6, 2),
    ((4, 5, 6), 10, 12, 2),  # a core runs over rows and columns
]
needs_flower = pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed")


def pieces_of(*numbers: int) -> list[Any]:
    """Trains of some of the shapes, and a head in their midst."""
    trains = []
    for number in numbers:
        dims, rows, columns, r = SHAPES[number]
        shape = TTShape.build(rows, columns, dims, r)
        update = Update(shape, scale=4.0, core_size=even_core_size(shape))
        trains.append(averages.Piece(update.parameters, update))
    return [trains[0], averages.Piece(HEAD), *trains[1:]]


def drawn(pieces: list[Any], clients: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    vectors = torch.randn(clients, sum(piece.size for piece in pieces), generator=chance)
    weights = torch.rand(clients, generator=chance, dtype=torch.float64) + 0.1
    return vectors, weights / weights.sum()


def dense(pieces: list[Any], vector: torch.Tensor) -> list[torch.Tensor]:
    """What each piece means: the update's matrix, or itself."""
    parts = vector.double().split([piece.size for piece in pieces])
    return [
        part if piece.update is None else piece.update.acting_train(part).to_matrix()
        for piece, part in zip(pieces, parts, strict=True)
    ]


def dense_mean(pieces: list[Any], vectors: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    matrices = [dense(pieces, vector) for vector in vectors]
    return [sum(w * m for w, m in zip(weights, own, strict=True)) for own in zip(*matrices, strict=True)]


trains = st.lists(st.integers(0, len(SHAPES) - 1), min_size=1, max_size=2)
seeds = st.integers(0, 2**20)


@settings(max_examples=20)
@given(trains, st.integers(1, 5), seeds)
def test_the_exact_average_is_the_rounded_mean_of_the_matrices(numbers, clients, seed):
    pieces = pieces_of(*numbers)
    vectors, weights = drawn(pieces, clients, seed)
    average = averages.exact_mean(vectors, weights, pieces)
    misses, norms = [], []
    for piece, mean, held in zip(pieces, dense_mean(pieces, vectors, weights), dense(pieces, average), strict=True):
        wanted = mean
        if piece.update is not None:
            shape = piece.update.shape
            wanted = TensorTrain.from_matrix(mean, shape.dims, shape.ranks[1:-1]).to_matrix()
            misses.append((held - mean).norm().item())
            norms.append(mean.norm().item())
        torch.testing.assert_close(held, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    told = averages.relative_error(average, vectors, weights, pieces)
    assert told == pytest.approx(math.hypot(*misses) / math.hypot(*norms), rel=1e-3, abs=1e-6)


@settings(max_examples=20)
@given(trains, st.integers(1, 5), st.integers(1, 9), seeds)
def test_the_mean_of_one_core_is_the_mean_of_the_matrices(numbers, clients, server_round, seed):
    pieces = pieces_of(*numbers)
    vectors, weights = drawn(pieces, clients, seed)
    places = averages.moving(pieces, server_round)
    same = vectors[:1].repeat(clients, 1)
    same[:, places] = vectors[:, places]
    average = averages.plain_mean(same, weights, pieces)
    for held, mean in zip(dense(pieces, average), dense_mean(pieces, same, weights), strict=True):
        torch.testing.assert_close(held, mean, rtol=1e-4, atol=1e-5 * mean.abs().max().item())
    assert averages.relative_error(average, same, weights, pieces) < 1e-5


def test_each_core_has_its_turn_and_the_zero_core_the_first():
    pieces = pieces_of(0)
    update = pieces[0].update
    zero, others = torch.zeros(update.parameters), []
    for server_round in range(1, 6):
        places = averages.moving(pieces, server_round)
        assert set(places[-HEAD:].tolist()) == set(range(update.parameters, update.parameters + HEAD))
        others.append(places[:-HEAD].tolist())
    assert sorted(place for turn in others[:4] for place in turn) == list(range(update.parameters))
    assert others[4] == others[0]
    zero[others[0]] = 1
    cores = TensorTrain(update.shape, zero).cores
    assert [index for index, core in enumerate(cores) if core.any()] == [update.zero_core]


def test_core_by_core_is_not_exact():
    pieces = pieces_of(0, 2)
    vectors, weights = drawn(pieces, 3, seed=0)
    average = averages.plain_mean(vectors, weights, pieces)
    assert averages.relative_error(average, vectors, weights, pieces) > 0.1
    torch.testing.assert_close(average, (weights[:, None] * vectors).sum(0).float())


@pytest.mark.parametrize("average", ["plain_mean", "exact_mean"])
def test_of_clients_that_agree_every_average_is_theirs(average):
    pieces = pieces_of(*range(len(SHAPES)))
    vectors, weights = drawn(pieces, 4, seed=1)
    vectors[1:] = vectors[0]
    mean = getattr(averages, average)(vectors, weights, pieces)
    assert averages.relative_error(mean, vectors, weights, pieces) < 1e-5
    torch.testing.assert_close(mean[pieces[0].size :][:HEAD], vectors[0, pieces[0].size :][:HEAD])


def test_the_exact_average_of_nothing_can_still_learn():
    pieces = pieces_of(0)
    update, average = pieces[0].update, averages.exact_mean(torch.zeros(3, pieces[0].size + HEAD), thirds(), pieces)
    assert averages.relative_error(average, torch.zeros(3, len(average)), thirds(), pieces) == 0.0
    cores = average[: update.parameters].clone().requires_grad_()
    assert not update.acting_train(cores).to_matrix().any()
    update.acting_train(cores).to_matrix().sum().backward()
    assert cores.grad.any()


def thirds() -> torch.Tensor:
    return torch.full((3,), 1 / 3, dtype=torch.float64)


@settings(max_examples=20)
@given(st.integers(1, 60), st.floats(-3, 3), seeds)
def test_no_gradients_move_a_number_further_than_the_reach(steps, spread, seed):
    chance = torch.Generator().manual_seed(seed)
    number = torch.nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.Adam([number], 1e-2)
    growth = 10 ** (spread * torch.linspace(0, 1, steps))
    for step in range(steps):
        # of one sign and of two, growing, falling and even
        signs = torch.where(torch.arange(50) < 25, 1.0, torch.randn(50, generator=chance))
        number.grad = signs * growth[step] * torch.rand(50, generator=chance).add(0.5)
        optimizer.step()
    assert number.abs().max() <= updates.reach(steps, 1e-2)


def test_the_reach_is_little_more_than_steps_in_one_direction():
    assert updates.reach(1, 0.5) == pytest.approx(0.5, rel=0.02)
    assert 0.1 * 20 < updates.reach(20, 0.1) < 0.1 * 20 * 1.5


def array_of(numbers: torch.Tensor, **changes: Any) -> Any:
    sound = {"dtype": "float32", "shape": (len(numbers),), "stype": updates.FORM, "data": numbers.numpy().tobytes()}
    return SimpleNamespace(**{**sound, **changes})


def test_a_sound_update_is_read_to_the_bit():
    before = torch.randn(6)
    numbers = before + 0.01
    assert torch.equal(updates.sound_numbers({"numbers": array_of(numbers)}, before, 0.02), numbers)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "does not hold one array 'numbers' and nothing else"),
        ({"other": {}}, "does not hold one array"),
        ({"numbers": {}, "more": {}}, "does not hold one array"),
        ({"numbers": {"dtype": "float64"}}, "not in little-endian float32"),
        ({"numbers": {"stype": "numpy.ndarray"}}, "not in little-endian float32"),
        ({"numbers": {"shape": (2, 3)}}, "is 2 x 3 numbers in 24 bytes, and not 6 numbers"),
        ({"numbers": {"shape": (10**12,)}}, "is 1000000000000 numbers in 24 bytes"),
        ({"numbers": {"shape": (1,) * 10_000}}, "is 1 x 1 x"),
        ({"numbers": {"data": b"1234" * 5}}, "in 20 bytes, and not 6 numbers"),
        ({"numbers": {"data": b"1234" * 6_000}}, "in 24,000 bytes"),
        ({"numbers": torch.tensor([0, 0, math.nan, 0, 0, 0])}, "not all finite"),
        ({"numbers": torch.tensor([0, 0, -math.inf, 0, 0, 0])}, "not all finite"),
        ({"numbers": torch.tensor([0, 0, -3e38, 0, 0, 0])}, "by 3e\\+38, and its training can move none by more"),
        ({"numbers": torch.tensor([0, 0, 0.03, 0, 0, 0])}, "by 0.03, and its training can move none by more than 0.02"),
    ],
)
def test_what_is_not_sound_is_refused_in_one_line(arrays, message):
    sent = {
        name: array_of(changes.float()) if isinstance(changes, torch.Tensor) else array_of(torch.zeros(6), **changes)
        for name, changes in arrays.items()
    }
    with pytest.raises(ValueError, match=message) as refusal:
        updates.sound_numbers(sent, torch.zeros(6), 0.02)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 80), st.integers(1, 3), seeds)
def test_rows_are_split_among_all_clients(clients, more, labels, seed):
    of_rows = np.random.default_rng(seed).integers(0, labels, clients + more).tolist()
    parts = training.split(of_rows, clients, np.random.default_rng(seed))
    assert sorted(index for part in parts for index in part) == list(range(len(of_rows)))
    assert all(parts)
    assert parts == training.split(of_rows, clients, np.random.default_rng(seed))


def test_clients_have_unlike_labels():
    labels = [0, 1] * 500
    shares = [np.mean([labels[i] for i in part]) for part in training.split(labels, 10, np.random.default_rng(0))]
    assert min(shares) < 0.2
    assert max(shares) > 0.8


@pytest.fixture
def rows(tmp_path) -> Path:
    """A data folder with 40 training and 20 validation rows."""
    write_jsonl(tmp_path / "data" / "train.jsonl", sentiment_rows(40, seed=1))
    write_jsonl(tmp_path / "data" / "validation.jsonl", sentiment_rows(20, seed=2))
    return tmp_path / "data"


def task_of(bert: Path, rows: Path, **changes: Any) -> Any:
    return training.Task(**{"model": str(bert), "data": str(rows), "rows": 36, "clients": 4, "seed": 0, **changes})


@pytest.mark.parametrize("way", training.WAYS)
def test_everybody_starts_alike_and_training_moves_what_is_sent(way, bert, rows):
    task = task_of(bert, rows)
    first, second = training.Learner(task, way), training.Learner(task, way)
    assert torch.equal(first.start, second.start)
    heads = [piece.size for piece in first.pieces][-2:]
    assert heads == [2 * 32, 2]
    second.load(first.start + 1)
    second.load(first.start)
    for learner in (first, second):
        learner.train(training.shares(task)[0], 1, client=0)
    assert torch.equal(first.vector, second.vector)
    moved = first.vector != first.start
    assert moved[first.places(1)].double().mean() > 0.1
    moved[first.places(1)] = False
    assert not moved.any()
    assert first.way.one_core == (len(first.vector[first.places(1)]) < len(first.vector))
    assert 0 <= first.score(training.read_rows(task.data, "validation")) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--average", "median"], "invalid choice: 'median'"),
        (["--clients", "0"], "'0' is not a whole number from 1 on"),
        (["--clients", "50"], "--clients is 50, and there are 36 rows: each client needs one"),
        (["--rows", "41"], "--rows is 41, and .*train.jsonl has 40"),
        (["--drop-out", "4"], "there is no client 4"),
        (["--hostile", "-1"], "'-1' is not a whole number from 0 on"),
        (["--model", "nowhere"], "--model nowhere cannot be trained as an encoder"),
        (["--model", "./nowhere"], "--model ./nowhere is no folder"),
        (["--data", "nowhere"], "nowhere/train.jsonl cannot be read as JSONL"),
        (["--output", __file__], "is there already: name another file"),
        (["--output", "nowhere/out.json"], "there is no folder"),
        (["--more"], "unrecognized arguments: --more"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, bert, rows, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(federated, "require_flower", lambda: None)
    stop = told(arguments, bert, rows, monkeypatch, capsys)
    assert stop[0] == 2
    assert stop[1].startswith("federated.py: ")
    assert stop[1].count("\n") == 1
    assert re.search(message, stop[1])


def test_without_flower_it_says_what_to_install(bert, rows, monkeypatch, capsys):
    monkeypatch.setattr(federated.importlib.util, "find_spec", lambda name: None)
    assert told([], bert, rows, monkeypatch, capsys) == (
        2,
        "federated.py: this needs Flower: python -m pip install 'ttlora[federated]'\n",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "cannot be read as JSONL"),
        ("[]", "row 1 is no object with a text as sentence"),
        ('{"sentence": "fine"}', "row 1 is no object"),
        ('{"sentence": "fine", "label": true}', "row 1 is no object"),
        ('{"sentence": "fine", "label": -1}', "row 1 has the label -1"),
        ("", "has no rows"),
    ],
)
def test_rows_are_checked(line, message, tmp_path):
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(training.UserError, match=message):
        training.read_rows(str(tmp_path), "train")


def told(arguments, bert, rows, monkeypatch, capsys) -> tuple[int, str]:
    """The exit status and what stands on stderr."""
    common = ["--model", bert, "--data", rows, "--rows", "36", "--clients", "4", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", ["federated.py", *map(str, common), *arguments])
    with pytest.raises(SystemExit) as stop:
        federated.main()
    return int(stop.value.code), capsys.readouterr().err


@pytest.fixture
def server() -> Any:
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    # a message cannot be made outside of a run
    identity.run_id = identity.task_id = identity.node_id = 1
    return importlib.import_module("server")


@pytest.fixture
def client() -> Any:
    return importlib.import_module("client")


def replies_of(server: Any, strategy: Any, contents: dict[int, Any]) -> list[Any]:
    """What Flower hands over after a round: answers, errors, and nothing of those who are silent."""
    flower = importlib.import_module("flwr.app")
    replies = []
    asked = list(strategy.configure_train(1, server.pack(strategy.vector), None, None))
    for number, content in contents.items():
        asked[number].metadata.__dict__["_message_id"] = str(number)
        told = flower.Error(0, content) if isinstance(content, str) else flower.RecordDict(content)
        replies.append(flower.Message(told, reply_to=asked[number]))
    return replies


@needs_flower
@pytest.mark.parametrize("way", training.WAYS)
def test_who_is_left_out_changes_nothing_for_the_others(way, bert, rows, server, client, capsys):
    def average(contents: dict[int, Any]) -> tuple[torch.Tensor, list[Any]]:
        strategy = server.Averaging(task, way, [100, 200, 300, 400])
        strategy.aggregate_train(1, replies_of(server, strategy, contents))
        return strategy.vector, strategy.outcome.left_out

    task = task_of(bert, rows)
    learner = server.learner(task, way)
    start = learner.start[learner.places(1)]
    chance = torch.Generator().manual_seed(0)
    sound = {
        number: {"update": server.pack(start + 1e-4 * torch.randn(len(start), generator=chance))} for number in range(3)
    }
    without, [silent] = average(sound)
    assert silent == (1, 3, "it did not answer in time")
    assert not torch.equal(without, learner.start)
    # those who answer first and last
    again, _ = average(dict(reversed(sound.items())))
    assert torch.equal(again, without)
    for bad in (
        "<class 'X'>:<'\nException ClientAppException occurred. Message: out of\nmemory'>",
        {},
        {"update": server.MetricRecord({"numbers": 1.0})},
        {**sound[0], "more": server.pack(start)},
        *({"update": client.damaged(server.pack(start), how)} for how in client.DAMAGES),
    ):
        got, [(_, number, reason)] = average({3: bad, **sound})
        assert torch.equal(got, without)
        assert number == 3
        assert "\n" not in reason
    capsys.readouterr()
    left, reasons = average({0: "gone", 1: {}})
    assert torch.equal(left, learner.start)
    assert len(reasons) == 4
    assert "no update is left, and the model stays as it was" in capsys.readouterr().out


@needs_flower
def test_bytes_are_those_of_the_messages(bert, rows, server):
    wire = importlib.import_module("wire")
    counts = {}
    for numbers in (1_000, 2_000, 5_000):
        strategy = server.Averaging(task_of(bert, rows), "exact", [1, 2, 3, 4])
        strategy.vector = torch.randn(numbers)
        [*asked] = strategy.configure_train(1, server.pack(strategy.vector), None, None)
        counts[numbers] = wire.wire_bytes(asked[0])
    # what a number costs, and what stands around them
    assert (counts[2_000] - counts[1_000]) / 1_000 == pytest.approx(4, abs=0.02)
    assert 500 < counts[5_000] - 20_000 < 3_000


@needs_flower
@pytest.mark.slow
def test_a_simulation(bert, rows, server, monkeypatch, capsys, tmp_path):
    """Flower's engine, with a client that fails and one that lies: what comes out is what is computed here."""
    vectors = {}
    run = server.Averaging.run

    def remember(self, *arguments):
        outcome = run(self, *arguments)
        vectors[self.way] = self.vector
        return outcome

    monkeypatch.setattr(server.Averaging, "run", remember)
    output = tmp_path / "out.json"
    arguments = ["--model", bert, "--data", rows, "--rows", 36, "--clients", 4, "--rounds", 2, "--output", output]
    arguments += ["--drop-out", 1, "--hostile", 2]
    monkeypatch.setattr("sys.argv", ["federated.py", *map(str, arguments)])
    federated.main()
    printed = capsys.readouterr().out
    assert printed.count("client 1 is left out: it failed: its machine went to sleep\n") == 10
    assert printed.count("client 2 is left out: ") == 10
    assert [line.split()[0] for line in printed.splitlines()[-5:]] == list(training.WAYS)

    outcomes = {outcome["way"]: outcome for outcome in json.loads(output.read_text())["ways"]}
    task = task_of(bert, rows)
    for way, outcome in outcomes.items():
        learner = training.Learner(task, way)
        vector, numbers = learner.start, [len(learner.start[learner.places(number)]) for number in (1, 2)]
        parts = {client: training.shares(task)[client] for client in (0, 3)}
        weights = torch.tensor([len(part) for part in parts.values()], dtype=torch.float64)
        for number in (1, 2):
            trained = []
            for client, part in parts.items():
                learner.load(vector)
                learner.train(part, number, client)
                trained.append(learner.vector)
            vector = learner.way.average(torch.stack(trained), weights / weights.sum(), learner.pieces)
        torch.testing.assert_close(vectors[way], vector, rtol=1e-3, atol=1e-6)
        assert outcome["numbers_up"] == numbers
        assert outcome["numbers_down"] == len(vector)
        assert len(outcome["scores"]) == 3
        # four messages down; two sound ones up, and what the others sent
        assert min(outcome["bytes_down"]) > 4 * 4 * len(vector)
        assert all(sent > 2 * 4 * count for sent, count in zip(outcome["bytes_up"], numbers, strict=True))
        assert {(number, client) for number, client, _ in outcome["left_out"]} == {(1, 1), (1, 2), (2, 1), (2, 2)}
