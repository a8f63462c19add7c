"""Damaged adapter folders: from a number, what a broken disk, another program or an enemy could have left."""

import itertools
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.0, 2**31, 10**30, 1e308, -1e-320),
    *("", "auto", "q_proj", "(", "text", "\x1b[2J", "x" * 5000, "\ud83d", "../../etc"),
    *([], [0], [5], [-1, 2], [2] * 300, ["q_proj"], ["("], [None], [[1]], [2**40, 2**40]),
    *({}, {"q_proj": 5}, {"q_proj": -1}, {"(": 1}, {"": None}, {"q_proj": [8, 8]}, {"8": [2, 2, 4]}, {"q_proj": "a"}),
    {"base_model_class": ["LlamaModel"]},
]
ODD_NAMES = [
    *("", "a", "base_model.model.", "base_model.model..ttlora_cores", "lora_A.weight", "\x1b[31m.lora_A.weight"),
    *("../../up.ttlora_cores", "base_model.model.x.ttlora_cores.more", "[red]x.lora_B.weight", "n" * 10_000),
    "base_model.model.model.layers.99999999999999999999.q_proj.lora_A.weight",
]
ODD_TENSORS: list[Callable[[], torch.Tensor]] = [
    lambda: torch.ones(()),
    lambda: torch.ones(0),
    lambda: torch.ones(0, 8),
    lambda: torch.ones(3),
    lambda: torch.ones([1] * 10),
    lambda: torch.ones(8, 8),
    lambda: torch.ones(32, dtype=torch.int8),
    lambda: torch.ones(32, dtype=torch.bool),
    lambda: torch.ones(32, dtype=torch.float8_e4m3fn),
    lambda: torch.ones(2, 8, dtype=torch.complex64),
]
ODD_ENTRIES = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 0.0)


def damage(folder: Path, seed: int) -> None:
    """Damage an adapter folder, in one way or two."""
    chance = random.Random(seed)
    for kind in chance.choices(list(KINDS), list(KINDS.values()), k=chance.choice((1, 1, 2))):
        # the second damage may find nothing left to damage
        if all((folder / name).is_file() and not (folder / name).is_symlink() for name in (CONFIG, WEIGHTS)):
            kind(folder, chance)


def _read_config(folder: Path) -> dict[str, Any] | None:
    """The config, unless an earlier damage has left none."""
    try:
        values = json.loads((folder / CONFIG).read_bytes())
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _config_value(folder: Path, chance: random.Random) -> None:
    values = _read_config(folder)
    if values is None:
        return
    name = chance.choice([*values, "no_such_field"])
    values[name] = chance.choice(ODD_VALUES)
    (folder / CONFIG).write_text(json.dumps(values))


def _config_text(folder: Path, chance: random.Random) -> None:
    text = (folder / CONFIG).read_bytes()
    start = chance.randrange(len(text) or 1)
    changed = [
        text[:start],
        text[:start] + bytes([chance.randrange(256)]) + text[start + 1 :],
        b"\xef\xbb\xbf" + text,
        text.decode("utf-8", "replace").encode("utf-16"),
        text.replace(b"{", b'{"r": 3, "r": 4, ', 1),
        text.replace(b"{", b'{"alpha": NaN, "lora_alpha": Infinity, ', 1),
        text.replace(b"{", b'{"r": ' + b"9" * 5000 + b", ", 1),
        text.replace(b"{", b'{"alpha": 1e999, "lora_alpha": 1e999, ', 1),
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"peft_type": "LORA"}',
        b'{"peft_type": "TTLORA"}',
        b"null",
        b"",
    ]
    (folder / CONFIG).write_bytes(chance.choice(changed))
    if chance.random() < 0.1:
        os.truncate(folder / CONFIG, 2**24 + 1)


def _bytes(folder: Path, chance: random.Random) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    start = chance.randrange(len(whole) or 1)
    changed = [
        whole[:start],
        whole + b"more",
        whole[:start] + bytes([chance.randrange(256)]) + whole[start + 1 :],
        struct.pack("<Q", chance.choice((0, 1, 2**31, 2**63, 99_999_999))) + whole[8:],
        whole[8:],
    ]
    (folder / WEIGHTS).write_bytes(chance.choice(changed))


def _header(folder: Path, chance: random.Random) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    try:
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        key = chance.choice([name for name in header if name != "__metadata__"])
        entry = header[key]
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
    except (ValueError, TypeError, IndexError, KeyError, struct.error):
        return  # damaged before
    change = chance.choice(("shape", "dtype", "data_offsets", "name", "drop", "twice", "entry", "metadata"))
    if change == "shape":
        odd = ([10**9, 10**9], [-1], [0], [2**64], [*shape, 1], [1, *shape], shape[::-1], "x", None)
        entry["shape"] = chance.choice(odd)
    elif change == "dtype":
        entry["dtype"] = chance.choice(("F64", "F16", "BF16", "I32", "F8_E5M2", "F99", "", None))
    elif change == "data_offsets":
        entry["data_offsets"] = chance.choice(
            ([0, end - begin], [begin, 10**15], [end, begin], [-1, 5], [begin], None, [begin + 1, end + 1])
        )
    elif change == "name":
        header[chance.choice(ODD_NAMES)] = header.pop(key)
    elif change == "drop":
        del header[key]
    elif change == "twice":
        header[key.removeprefix("base_model.model.")] = entry
    elif change == "entry":
        header[key] = chance.choice((5, None, [], {}, "x"))
    else:
        header["__metadata__"] = chance.choice(({"format": "tf"}, {"format": 5}, [], None, {"a": "b" * 10**5}))
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def _tensor(folder: Path, chance: random.Random) -> None:
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception:
        return  # damaged before
    key = chance.choice([*tensors, *ODD_NAMES])
    if key in tensors and chance.random() < 0.5:
        tensor = tensors[key].float().reshape(-1)
        tensor[chance.randrange(len(tensor))] = chance.choice(ODD_ENTRIES)
        if chance.random() < 0.3:
            tensor[:] = chance.choice(ODD_ENTRIES)
        tensors[key] = tensor.reshape(tensors[key].shape).to(chance.choice((torch.float32, torch.float64)))
    elif chance.random() < 0.2:
        tensors.pop(key, None)
    else:
        tensors[key] = chance.choice(ODD_TENSORS)()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _claim(folder: Path, chance: random.Random) -> None:
    """A few cores that claim to be the update of a huge matrix, or a rank that no tensor has."""
    config = _read_config(folder)
    if config is None:
        return
    rank = chance.choice((1, 2, 3))
    if config.get("peft_type") == "TTLORA":
        side = chance.choice((20, 30))
        config |= {"r": rank, "shape": [2] * 2 * side, "shape_pattern": {}, "rank_pattern": {}}
        config["weight_sizes"] = {"q_proj": [2**side, 2**side]}
        ranks = [1, *[min(rank, 2)], *[min(rank, 3)] * (2 * side - 3), min(rank, 2), 1]
        length = sum(left * 2 * right for left, right in itertools.pairwise(ranks))
        cores = torch.randn(length)
        save_file({"base_model.model.model.layers.0.self_attn.q_proj.ttlora_cores": cores}, folder / WEIGHTS)
    else:
        names = [name for name in ("r", "tt_rank", "rank_pattern", "weight_sizes", "shape") if name in config]
        name = chance.choice(names or ["r"])
        huge = chance.choice((10**6, 2**31 - 1, 2**40))
        config[name] = {"r": huge, "tt_rank": huge}.get(name, {"q_proj": huge, "8": [huge, huge]})
    (folder / CONFIG).write_text(json.dumps(config))


def _file(folder: Path, chance: random.Random) -> None:
    file = folder / chance.choice((CONFIG, WEIGHTS))
    file.unlink()
    kind = chance.choice(("gone", "folder", "pipe", "endless", "nowhere", "itself", "pickle"))
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "pickle":
        file.with_suffix(".bin").write_bytes(b"cos\nsystem\n")
    elif kind != "gone":
        file.symlink_to({"endless": "/dev/zero", "nowhere": "/nowhere/file", "itself": file.name}[kind])


# how often each stands among the others
KINDS: dict[Callable[[Path, random.Random], None], int] = {
    _config_value: 10,
    _config_text: 3,
    _bytes: 2,
    _header: 5,
    _tensor: 6,
    _claim: 2,
    _file: 1,
}
