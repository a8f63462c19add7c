"""Federated fine-tuning on Flower: clients with unlike rows train tensor-train adapters, and send what they trained.

    python examples/federated/federated.py --model MODEL --data DIR

MODEL is a folder or a name on the hub, of an encoder. DIR holds train.jsonl and validation.jsonl, with lines such as
SST-2's: {"sentence": "a lovely story", "label": 1}. Five ways are gone one after the other, each from the same start:

    core-by-core   TT-LoRA; the server averages core by core, as FedTT does
    exact          TT-LoRA; the server averages the updates, and rounds their sum to the ranks that it had
    frozen-cores   TT-LoRA; one core of each train trains in a round, so that its mean is exact (after FedTT+)
    adapters       FedTT's tensorised adapters behind attention and feed-forward, averaged core by core
    lora           LoRA r=8 on query and value, averaged factor by factor

At the end stands what each way sent and what it scored. Clients are simulated by Flower's engine on this machine;
Flower and Ray are `pip install 'ttlora[federated]'`.
"""

import argparse
import importlib.util
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from training import WAYS, Task, learner, shares
from transformers.utils import logging as transformers_logging

from ttlora.errors import RunError, UserError
from ttlora.whole_files import write_json

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray listens on the loopback alone, on Linux too
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # its workers would run at 15, as if this were an idle machine
    "RAY_worker_niceness": "0",
}
# one process a core, silent, with little memory for what they share
ENGINE = {
    "client_resources": {"num_cpus": 1},
    "init_args": {"object_store_memory": 200 * 2**20, "log_to_driver": False},
}


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        options = read_options()
        task = Task(
            options.model,
            str(options.data.absolute()),
            options.rows,
            options.clients,
            options.seed,
            tuple(options.drop_out),
            tuple(options.hostile),
        )
        outcomes = run(task, options.average, options.rounds, options.timeout)
        print_table(outcomes, task)
        if options.output is not None:
            write_json(options.output, {"task": asdict(task), "ways": [*map(asdict, outcomes)]})
    except (UserError, RunError) as error:
        print(f"federated.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


def run(task: Task, ways: list[str], rounds: int, timeout: float) -> list[Any]:
    """Go all ways in one simulation.

    Args:
        task: What is learned.
        ways: Keys of `WAYS`.
        rounds: How many rounds each.
        timeout: For how many seconds the server waits for a round's updates.

    Returns:
        The `Outcome` of each.

    Raises:
        UserError: The task cannot be learned as it is.
    """
    require_flower()
    # what is wrong with the task is told before processes are started for it
    shares(task)
    learner(task, ways[0])
    os.environ.update(ENVIRONMENT)
    from client import make_client
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation
    from server import Averaging, nodes_of

    # a client that fails is told of in a line, and not in a traceback
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    app, outcomes = ServerApp(), []

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        nodes = nodes_of(grid, task.clients, timeout)
        for way in ways:
            outcomes.append(Averaging(task, way, nodes).run(grid, rounds, timeout))

    run_simulation(app, make_client(task), task.clients, backend_config=ENGINE)
    return outcomes


def require_flower() -> None:
    """Refuse to run where Flower and its engine are not installed."""
    if importlib.util.find_spec("flwr") is None or importlib.util.find_spec("ray") is None:
        raise UserError("this needs Flower: python -m pip install 'ttlora[federated]'")


def read_options() -> argparse.Namespace:
    parser = OneLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of an encoder")
    parser.add_argument("--data", required=True, type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--rounds", type=whole(1), default=5, help="(%(default)s)")
    parser.add_argument("--clients", type=whole(1), default=10, help="(%(default)s)")
    parser.add_argument("--rows", type=whole(1), default=2_000, help="training rows at all clients (%(default)s)")
    parser.add_argument("--average", nargs="+", choices=WAYS, default=list(WAYS), help="ways to go (all)")
    parser.add_argument("--drop-out", nargs="+", type=whole(0), default=[], help="clients that fail, from 0 on (none)")
    parser.add_argument("--hostile", nargs="+", type=whole(0), default=[], help="clients that send damage (none)")
    parser.add_argument("--timeout", type=whole(1), default=600, help="seconds for a round's training (%(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="new JSON file for all figures")
    options = parser.parse_args()
    for client in (*options.drop_out, *options.hostile):
        if client >= options.clients:
            parser.error(f"there is no client {client}: with --clients {options.clients} they are counted from 0 on")
    if options.output is not None and options.output.exists():
        parser.error(f"--output {options.output} is there already: name another file")
    if options.output is not None and not options.output.absolute().parent.is_dir():
        parser.error(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
    return options


class OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments."""
        raise UserError(message)


def whole(least: int) -> Any:
    """A whole number from `least` on, as argparse reads it."""

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() else -1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return number

    return read


def print_table(outcomes: list[Any], task: Task) -> None:
    """What each way sent and scored; bytes are those of a round, of all clients together."""
    rounds = len(outcomes[0].scores) - 1
    print(f"\n{task.clients} clients with {task.rows:,} rows; numbers of one client, bytes of all in a round")
    head = (
        f"{'way':<14}{'numbers up':>12}{'down':>9}{'bytes up':>12}{'down':>12}{'worst error':>13}  accuracy after round"
    )
    print(head, *(f"{number:>6}" for number in range(rounds + 1)), sep="")
    for outcome in outcomes:
        numbers, up, down = (
            sum(counts) / rounds for counts in (outcome.numbers_up, outcome.bytes_up, outcome.bytes_down)
        )
        error = f"{max(outcome.errors):.1e}" if outcome.errors else ""
        scores = "".join(f"{score:>6.3f}" for score in outcome.scores)
        sizes = f"{numbers:>12,.0f}{outcome.numbers_down:>9,}{up:>12,.0f}{down:>12,.0f}"
        print(f"{outcome.way:<14}{sizes}{error:>13}{'':>22}{scores}")


if __name__ == "__main__":
    main()
