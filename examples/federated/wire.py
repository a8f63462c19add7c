"""What travels between server and clients, and how many bytes that is."""

from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from jaxtyping import Float
from torch import Tensor
from updates import FORM, NUMBERS

# the name of a message's record of arrays
RECORD = "update"


def pack(numbers: Float[Tensor, " numbers"]) -> ArrayRecord:
    """The numbers as one array: with an array for each train, names and headers would be longer than what they hold.

    They are written as they lie in memory. NumPy's form, which Flower uses by itself, has a header that says how much
    memory is to be taken, and comes from a client.

    Args:
        numbers: In float32.
    """
    data = numbers.numpy().astype("<f4").tobytes()
    return ArrayRecord({NUMBERS: Array("float32", (len(numbers),), FORM, data)})


def wire_bytes(message: Message) -> int:
    """How many bytes Flower's transport makes of a message (flwr 1.42, `HttpGrid` and SuperNode).

    It is sent as a request that tells the message's metadata and the tree of its objects by their hashes, and a request
    for each object; all of them are made here, and their bytes are counted. What HTTP and TLS put around them is not.

    Args:
        message: A message with its content, or one that tells of an error.
    """
    metadata = message_to_proto(message)
    metadata.ClearField("content")
    requests = [PushAppMessagesRequest(messages_list=[metadata], message_object_trees=[get_object_tree(message)])]
    run, node = message.metadata.run_id, metadata.metadata.src_node_id
    for name, item in get_all_nested_objects(message).items():
        request = PushObjectRequest(run_id=run, object_id=name, object_content=item.deflate())
        request.node.node_id = node
        requests.append(request)
    return sum(len(request.SerializeToString()) for request in requests)


class CountingGrid:
    """A grid that counts what goes through it.

    Attributes:
        down: Bytes to the clients, round by round.
        up: Bytes from the clients, round by round.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.down: list[int] = []
        self.up: list[int] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages, wait for the replies, and count both."""
        sent = list(messages)
        if not sent:
            return []
        replies = list(self.grid.send_and_receive(sent, timeout=timeout))
        self.down.append(sum(map(wire_bytes, sent)))
        self.up.append(sum(map(wire_bytes, replies)))
        return replies
