"""Serving TT-LoRA adapters as they are: how long a request waits for one, and what that is beside a LoRA.

    python benchmarks/serving.py [--rounds 15] [--json serving.json]
    .venv-serving/bin/python benchmarks/serving.py --model MODEL [--json engine.json]

The first needs no engine: adapters of LLaMA2-7B's shape that are not in the cache are read, expanded and written, until
the path of the plain LoRA could be handed to an engine. Then come 2,000 requests in a skewed order (the k-th adapter is
asked for 1/k times as often as the first; the seed is fixed) for 1, 100 and 1,000 adapters, with a cache for 100. Bars:
0.15 s, for a cold adapter in the median, and for 95 % of the requests. Bytes are those of whole folders, and it is the
folder of TT-LoRA or of LoRA r=8 that travels to a server. What has just been written, the system still has in memory.

The second starts vLLM's server (`make serving` sets up its environment) on a Llama of the folder MODEL, with our plugin
and vLLM's own resolver for folders of LoRA, and asks for one token after 32, with 1, 100 and 1,000 adapters of either
kind on disk. A cold adapter is one that neither the server nor our cache has; a warm one was asked for just before.
"""

import importlib.util
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from contestants import DEFAULT, LORA_THERE, TT, adapter_configs, default_configs, wrapped
from measuring import COLUMNS, LORA, Bar, Row, compare, parse, publish
from peft import PeftConfig, get_peft_model_state_dict

from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.models.skeleton import build_skeleton
from ttlora.serving.cache import LoraCache

ON_DISK, KEPT, REQUESTS = (1, 100, 1000), 100, 2000
LONGEST_WAIT = 0.15
EXPANDED, BASE = "expanded, in the cache", "no adapter"
PROMPT, WORDS = 32, 1000
STARTING = 600
# columns of this table alone
WAITS: dict[str, tuple[str, Callable[[float], str]]] = {
    "cpu": ("CPU ms", lambda seconds: f"{1000 * seconds:,.1f}"),
    "p95": ("p95 ms", lambda seconds: f"{1000 * seconds:,.1f}"),
    "p99": ("p99 ms", lambda seconds: f"{1000 * seconds:,.1f}"),
    "a_second": ("a second", lambda count: f"{count:,.0f}"),
    "over_warm": ("ms over warm", lambda seconds: f"{1000 * seconds:,.1f}"),
    "hits": ("in the cache", lambda share: f"{100 * share:.0f} %"),
}


def main() -> None:
    told = "folder of a small Llama, to be served by vLLM; without it, no engine is asked"
    arguments = parse(__doc__, options={"--model": {"type": Path, "metavar": "MODEL", "help": told}})
    if arguments.model is not None and importlib.util.find_spec("vllm") is None:
        refuse("--model needs vLLM, which is not installed here: run this in the environment of `make serving`")
    rows = without_engine(arguments.rounds) if arguments.model is None else in_vllm(arguments)
    COLUMNS.update(WAITS)
    publish(arguments, "serving", rows)


def refuse(why: str) -> NoReturn:
    print(f"serving.py: {why}", file=sys.stderr)
    sys.exit(2)


def without_engine(rounds: int) -> list[Row]:
    model = build_skeleton("llama2-7b")
    configs, defaults = adapter_configs(), default_configs(model)
    rows = cold("q and v", model, {TT: configs[TT], LORA: configs[LORA]}, rounds)
    rows += cold("the default's places", model, {DEFAULT: defaults[DEFAULT], LORA_THERE: defaults[LORA_THERE]}, rounds)
    for on_disk in ON_DISK:
        rows.append(skewed(model, {TT: configs[TT]}, on_disk, KEPT, REQUESTS))
    return rows


def cold(case: str, model: Any, configs: Mapping[str, PeftConfig], rounds: int) -> list[Row]:
    """What `rounds` adapters wait for that nobody has asked for yet, and the bytes of one beside a LoRA."""
    ours, lora = configs
    with tempfile.TemporaryDirectory() as place:
        folders = write(model, configs[ours], Path(place, "adapters"), 1 + rounds)
        (of_lora,) = write(model, configs[lora], Path(place, "lora"), 1)
        cache = LoraCache(Path(place, "cache"), 10**12)
        # the first pays for imports
        cache.expanded(folders[0])
        began = time.process_time()
        seconds = [seconds_of(lambda folder=folder: cache.expanded(folder)) for folder in folders[1:]]
        of_cpu = (time.process_time() - began) / rounds
        sizes = {ours: size(folders[0]), EXPANDED: size(cache.expanded(folders[0])), lora: size(of_lora)}
    figures = waits(seconds) | {"cpu": of_cpu}
    bar = Bar("s for a cold adapter", LONGEST_WAIT, figures["seconds"])
    rows = [Row(case, name, {"bytes": of, "bytes_to_lora": of / sizes[lora]}) for name, of in sizes.items()]
    return [Row(case, ours, {**figures, **rows[0].figures}, (bar,)), *rows[1:]]


def skewed(model: Any, configs: Mapping[str, PeftConfig], on_disk: int, kept: int, requests: int) -> Row:
    """What requests wait for, from the first on, with an empty cache that will hold `kept` adapters."""
    ((name, config),) = configs.items()
    popularity = [1 / rank for rank in range(1, on_disk + 1)]
    order = random.Random(0).choices(range(on_disk), popularity, k=requests)
    with tempfile.TemporaryDirectory() as place:
        folders = write(model, config, Path(place, "adapters"), on_disk)
        one = size(LoraCache(Path(place, "one"), 10**12).expanded(folders[0]))
        cache = LoraCache(Path(place, "cache"), int((kept + 0.5) * one))
        seconds, held, hits = [], set[str](), 0
        for number in order:
            taken: list[Path] = []
            seconds.append(seconds_of(lambda number=number, to=taken: to.append(cache.expanded(folders[number]))))
            hits += taken[0].name in held
            held = {path.parent.name for path in cache.folder.glob("*/adapter_config.json")}
        content = sum(size(cache.folder / entry) for entry in held)
    figures = waits(seconds) | {"hits": hits / requests, "bytes": content}
    bar = Bar("s for 95 % of the requests", LONGEST_WAIT, figures["p95"])
    return Row(f"{requests:,} requests, a cache for {kept}", f"{name}, {on_disk:,} on disk", figures, (bar,))


def in_vllm(arguments: Namespace) -> list[Row]:
    try:
        model = build_skeleton(str(arguments.model))
    except UserError as error:
        refuse(f"--model: {error}")
    # both resolvers hold an adapter against the model that is served
    model.name_or_path = str(arguments.model)
    configs = adapter_configs()
    rows, written = [], 0
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        for name in ("tt", "lora", "cache"):
            (place / name).mkdir()
        with vllm(arguments, place) as server:
            for on_disk in ON_DISK:
                for name, kind in ((TT, "tt"), (LORA, "lora")):
                    write(model, configs[name], place / kind, on_disk, written)
                written = on_disk
                rows += first_tokens(server, place, on_disk, arguments.rounds)
    return rows


def first_tokens(server: "Server", place: Path, on_disk: int, rounds: int) -> list[Row]:
    """How long the first token takes, of the base model and of adapters of both kinds, cold and warm."""
    states = ("cold", "warm")
    seconds = {state: {TT: [], LORA: []} for state in states}
    of_base = []
    for number in range(-1, rounds):
        # one of them all, and another each time where there are as many
        chosen = number * (on_disk // rounds or 1) % on_disk
        shutil.rmtree(place / "cache")
        (place / "cache").mkdir()
        base = server.first_token(None)
        for name, kind in ((TT, "tt"), (LORA, "lora")):
            server.unload(f"{kind}-{chosen}")
            took = [server.first_token(f"{kind}-{chosen}") for _ in states]
            if number >= 0:
                for state, of in zip(states, took, strict=True):
                    seconds[state][name].append(of)
        if number >= 0:
            of_base.append(base)
    case = f"first token, {on_disk:,} on disk"
    rows = [Row(case, BASE, compare({BASE: of_base}, frozen=None)[BASE])]
    for state in states:
        figures = compare(seconds[state], frozen=None)
        for name, runs in seconds[state].items():
            if state == "cold":
                over = [took - warm for took, warm in zip(runs, seconds["warm"][name], strict=True)]
                figures[name]["over_warm"] = statistics.median(over)
            rows.append(Row(case, f"{name}, {state}", figures[name]))
    return rows


class Server:
    """A server of OpenAI's interface, and what is asked of it."""

    def __init__(self, port: int, model: Path) -> None:
        self.port, self.model, self.chance = port, model, random.Random(0)

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def first_token(self, adapter: str | None) -> float:
        """The seconds until a prompt of its own has one token more, by an adapter or by the base model."""
        prompt = [self.chance.randrange(1, WORDS) for _ in range(PROMPT)]
        content = {"model": adapter or str(self.model), "prompt": prompt, "max_tokens": 1, "temperature": 0}
        return seconds_of(lambda: self._post("/v1/completions", content))

    def unload(self, adapter: str) -> None:
        """Let it forget an adapter, if it knows it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=60) as answer:
            known = [model["id"] for model in json.load(answer)["data"]]
        if adapter in known:
            self._post("/v1/unload_lora_adapter", {"lora_name": adapter})

    def _post(self, path: str, content: dict[str, Any]) -> None:
        url, headers = f"http://127.0.0.1:{self.port}{path}", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(content).encode(), headers), timeout=300):
            pass


@contextmanager
def vllm(arguments: Namespace, place: Path) -> Iterator[Server]:
    """The server of vLLM with both resolvers and room for one adapter, so that each that comes drives another out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "TTLORA_ADAPTERS": place / "tt",
        "TTLORA_CACHE": place / "cache",
        "VLLM_LORA_RESOLVER_CACHE_DIR": place / "lora",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
        "VLLM_CPU_KVCACHE_SPACE": 1,
        "VLLM_NO_USAGE_STATS": 1,
        "HF_HUB_OFFLINE": 1,
    }
    # a prompt that was seen before would be answered from memory
    flags = ["--enable-lora", "--enforce-eager", "--no-enable-prefix-caching"]
    sizes = {"max-lora-rank": 8, "max-loras": 1, "max-cpu-loras": 1, "max-model-len": 2 * PROMPT, "port": port}
    flags += [
        f"--dtype={str(arguments.dtype).removeprefix('torch.')}",
        *(f"--{name}={of}" for name, of in sizes.items()),
    ]
    log = place / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(arguments.model), *flags],
            env=os.environ | {name: str(value) for name, value in variables.items()},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        server, deadline = Server(port, arguments.model), time.monotonic() + STARTING
        while not server.is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"serving.py: vLLM does not start with {arguments.model}:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def write(model: Any, config: PeftConfig, home: Path, up_to: int, first: int = 0) -> list[Path]:
    """Adapters with random tensors, named by the folder's name and their number; the model has no weights."""
    adapted = wrapped(model, config)
    saved = adapted.peft_config["default"]
    saved.inference_mode = True
    shapes = {key: tensor.shape for key, tensor in get_peft_model_state_dict(adapted).items()}
    adapted.unload()
    folders = [home / f"{home.name}-{number}" for number in range(first, up_to)]
    for number, folder in enumerate(folders, first):
        chance = torch.Generator().manual_seed(number)
        write_adapter(
            folder, saved, {key: 0.02 * torch.randn(shape, generator=chance) for key, shape in shapes.items()}
        )
    return folders


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def waits(seconds: list[float]) -> dict[str, float]:
    """The median, what 95 and 99 % keep below, and how many come in a second, one after the other."""
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    figures = {"seconds": statistics.median(seconds), "p95": hundredths[94], "p99": hundredths[98]}
    return {**figures, "a_second": len(seconds) / sum(seconds)}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()
