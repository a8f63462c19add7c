"""The server: hands out the numbers, looks at every update before it counts, and averages those that are sound."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from averages import relative_error
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from jaxtyping import Float
from torch import Tensor
from training import BATCH_SIZE, Task, learner, read_rows, shares
from updates import reach, sound_numbers
from wire import RECORD, CountingGrid, pack

from ttlora.errors import RunError, printable


@dataclass
class Outcome:
    """What came of one way.

    Attributes:
        way: Its name.
        numbers_down: How many the server sends to a client in a round.
        numbers_up: How many a client sends back, round by round.
        bytes_down: To all clients together, round by round.
        bytes_up: From all clients together, round by round.
        scores: Accuracy on the validation rows, before the first round and after each.
        errors: Of each average of trains, how far it is from the mean of the updates, relative to that mean's norm.
        left_out: Rounds, clients and reasons.
    """

    way: str
    numbers_down: int
    numbers_up: list[int] = field(default_factory=list)
    bytes_down: list[int] = field(default_factory=list)
    bytes_up: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    left_out: list[tuple[int, int, str]] = field(default_factory=list)


class Averaging(Strategy):
    """Flower's rounds with one of the ways to average.

    How many rows a client has is known from the beginning, and no update can claim more weight.

    Args:
        task: What is learned.
        way: A key of `WAYS`.
        nodes: Flower's number of each client.
    """

    def __init__(self, task: Task, way: str, nodes: list[int]) -> None:
        self.way, self.nodes = way, nodes
        self.learner = learner(task, way)
        self.vector = self.learner.start
        self.rows = [len(rows) for rows in shares(task)]
        self.scored = read_rows(task.data, "validation")
        self.outcome = Outcome(way, len(self.vector))

    def run(self, grid: Grid, rounds: int, timeout: float) -> Outcome:
        """Go through all rounds.

        Args:
            grid: Flower's way to the clients.
            rounds: How many rounds.
            timeout: For how many seconds the server waits for a round's updates.
        """
        counting: Any = CountingGrid(grid)
        self.start(counting, pack(self.vector), rounds, timeout, evaluate_fn=self.score)
        self.outcome.bytes_down, self.outcome.bytes_up = counting.down, counting.up
        return self.outcome

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message for every client: all numbers, and which client it is."""
        for client, node in enumerate(self.nodes):
            orders = ConfigRecord({"way": self.way, "round": server_round, "client": client})
            yield Message(RecordDict({RECORD: arrays, "orders": orders}), node, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The average of the updates that are sound, each with the weight of its client's rows."""
        places = self.learner.places(server_round)
        before = self.vector[places]
        self.outcome.numbers_up.append(len(before))
        answers = {reply.metadata.src_node_id: reply for reply in replies}
        sound: dict[int, Tensor] = {}
        for client, node in enumerate(self.nodes):
            steps = math.ceil(self.rows[client] / BATCH_SIZE)
            limit = reach(steps, self.learner.way.learning_rate)
            try:
                sound[client] = read_update(answers.get(node), before, limit)
            except ValueError as error:
                self.outcome.left_out.append((server_round, client, str(error)))
                print(f"{self.way}, round {server_round}: client {client} is left out: {error}", flush=True)
        if not sound:
            print(f"{self.way}, round {server_round}: no update is left, and the model stays as it was", flush=True)
            return None, None
        vectors = self.vector.repeat(len(sound), 1)
        vectors[:, places] = torch.stack([*sound.values()])
        rows = torch.tensor([self.rows[client] for client in sound], dtype=torch.float64)
        weights, pieces = rows / rows.sum(), self.learner.pieces
        self.vector = self.learner.way.average(vectors, weights, pieces)
        if any(piece.update for piece in pieces):
            self.outcome.errors.append(relative_error(self.vector, vectors, weights, pieces))
        return pack(self.vector), None

    def score(self, server_round: int, arrays: ArrayRecord) -> None:
        """Score the model of a round on the validation rows."""
        self.learner.load(self.vector)
        accuracy = self.learner.score(self.scored)
        self.outcome.scores.append(accuracy)
        print(f"{self.way}, round {server_round}: accuracy {accuracy:.3f}", flush=True)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """None: the server has validation rows of its own."""
        return ()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing, of nothing."""

    def summary(self) -> None:
        """Nothing that is to be logged."""


def nodes_of(grid: Grid, clients: int, timeout: float) -> list[int]:
    """Flower's numbers of the clients, as soon as all are there.

    Args:
        grid: Flower's way to the clients.
        clients: How many there are.
        timeout: For how many seconds the server waits for them.

    Raises:
        RunError: They are not there in time.
    """
    end = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < clients:
        if time.monotonic() > end:
            raise RunError(f"{len(nodes)} of {clients} clients are there after {timeout:g} seconds")
        time.sleep(0.1)
    return nodes


def read_update(reply: Message | None, before: Float[Tensor, " numbers"], limit: float) -> Float[Tensor, " numbers"]:
    """The numbers of an update that is sound.

    Args:
        reply: What a client sent; None: nothing.
        before: The numbers that it was sent.
        limit: How far its optimiser can have moved any of them.

    Raises:
        ValueError: It is not sound; the message says why, in one line.
    """
    if reply is None:
        raise ValueError("it did not answer in time")
    if reply.has_error():
        # Flower's text stands around what the client's code raised
        reason = reply.error.reason.rpartition("Message: ")[2].removesuffix("'>")
        raise ValueError(f"it failed: {printable(reason, 200)}")
    if list(reply.content) != [RECORD] or RECORD not in reply.content.array_records:
        raise ValueError(f"it sent something else than a record of arrays '{RECORD}'")
    return sound_numbers(reply.content.array_records[RECORD], before, limit)
