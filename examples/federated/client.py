"""The clients: each trains on its own rows, and sends back the numbers that it trained."""

import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from training import Task, learner, shares
from updates import FORM, NUMBERS, read_numbers
from wire import RECORD, pack

# what a hostile client sends, another one in every round
DAMAGES = ("far", "not finite", "shape", "dtype", "missing", "extra", "cut", "huge")


def make_client(task: Task) -> ClientApp:
    """The app that runs for every client; the server's message says for which.

    Args:
        task: What is learned, and which clients fail or lie.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        orders = message.content["orders"]
        client, server_round = orders["client"], orders["round"]
        if client in task.drop_out:
            raise RuntimeError("its machine went to sleep")
        pupil = learner(task, orders["way"])
        pupil.load(read_numbers(message.content[RECORD][NUMBERS]))
        pupil.train(shares(task)[client], server_round, client)
        update = pack(pupil.vector[pupil.places(server_round)])
        if client in task.hostile:
            update = damaged(update, DAMAGES[(server_round - 1) % len(DAMAGES)])
        return Message(RecordDict({RECORD: update}), reply_to=message)

    return app


def damaged(update: ArrayRecord, how: str) -> ArrayRecord:
    """An update as a broken or a hostile client might send it.

    Args:
        update: A sound one.
        how: One of `DAMAGES`.
    """
    array = update[NUMBERS]
    numbers, shape = read_numbers(array), tuple(array.shape)
    if how == "far":
        return pack(numbers + 1e6)
    if how == "not finite":
        return pack(torch.where(torch.arange(len(numbers)) == 0, torch.nan, numbers))
    if how == "missing":
        return ArrayRecord()
    if how == "extra":
        return ArrayRecord({NUMBERS: array, "more": array})
    changed = {
        "shape": Array("float32", (2, *shape), FORM, array.data),
        "dtype": Array("float64", shape, FORM, array.data),
        "cut": Array("float32", shape, FORM, array.data[:-1]),
        "huge": Array("float32", shape, FORM, array.data * 100),
    }
    return ArrayRecord({NUMBERS: changed[how]})
