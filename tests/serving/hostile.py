"""Adapter folders that someone made to do harm, each from a whole one."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# what a pickle or a module would leave in the folder above, if it was run
RAN = "ran"


class _Runs:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def _pickled(folder: Path) -> bytes:
    return pickle.dumps(_Runs(folder.parent / RAN))


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(values | changes))

    return change


def _named(*names: str) -> Callable[[Path], None]:
    """Tensors of other names, where paths might be made of them."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        spare = next(iter(tensors.values()))
        save_file(tensors | {name: spare.clone() for name in names}, folder / WEIGHTS)

    return change


def _header(entries: dict[str, Any], size: int = 0) -> Callable[[Path], None]:
    """A file whose header claims what its bytes do not hold, or holds as holes."""

    def change(folder: Path) -> None:
        text = json.dumps(entries).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(folder / WEIGHTS, 8 + len(text) + size)

    return change


def _tensor(shape: list[int], size: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}


def _many_names(folder: Path) -> None:
    _header({f"{PREFIX}m{number}.ttlora_cores": _tensor([0], 0) for number in range(100_000)})(folder)


def _many_lists(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": [' + "[]," * 5_000_000 + "[]]}")


def _many_sizes(folder: Path) -> None:
    _config(weight_sizes={f"m{number}": [4096, 4096] for number in range(200_000)})(folder)


def _deep(folder: Path) -> None:
    (folder / CONFIG).write_text('{"r": ' + "[" * 400_000 + "]" * 400_000 + "}")


def _huge_update(folder: Path) -> None:
    """Three hundred cores of ones that claim to be a matrix of 2^30 rows."""
    _config(r=1, shape=[2] * 60, shape_pattern={}, rank_pattern={}, weight_sizes={"q_proj": [2**30, 2**30]})(folder)
    _header({f"{PREFIX}model.layers.0.self_attn.q_proj.ttlora_cores": _tensor([120], 480)}, 480)(folder)


def _swapped(name: str, target: str) -> Callable[[Path], None]:
    """A link where a file should be."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def _pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _inner_link(folder: Path) -> None:
    """The output folder of a run, whose adapter lies elsewhere."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink()
    (folder / "adapter").symlink_to("../../outside")


def _further_link(folder: Path) -> None:
    """An adapter that is whole, with one more file that lies elsewhere."""
    (folder / "tokenizer.json").symlink_to("/etc/passwd")


def _pickle_beside(folder: Path) -> None:
    for name in ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(_pickled(folder))


def _pickle_instead(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    _pickle_beside(folder)


def _pickle_disguised(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(_pickled(folder))


def _own_code(folder: Path) -> None:
    """Code beside the adapter, and all fields that libraries look for code by."""
    for name in ("__init__.py", "evil.py", "modeling_evil.py", "sitecustomize.py"):
        (folder / name).write_text(f"import pathlib; pathlib.Path({str(folder.parent / RAN)!r}).touch()\n")
    _config(
        auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"},
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil"},
        trust_remote_code=True,
    )(folder)


# what is done to the folder; whether an adapter is left that is whole, and is served
HOSTILE: dict[str, tuple[Callable[[Path], None], bool]] = {
    "config is a link": (_swapped(CONFIG, "../../outside/adapter_config.json"), False),
    "weights are a link": (_swapped(WEIGHTS, "../../outside/adapter_model.safetensors"), False),
    "weights are a device": (_swapped(WEIGHTS, "/dev/zero"), False),
    "the inner folder is a link": (_inner_link, False),
    "one more file is a link": (_further_link, False),
    "config is a pipe": (_pipe(CONFIG), False),
    "weights are a pipe": (_pipe(WEIGHTS), False),
    "tensors named as paths": (_named("../../up", "/tmp/up.ttlora_cores", f"{PREFIX}../../../up.ttlora_cores"), False),
    "tensors named with NUL": (_named(f"{PREFIX}a\0b.ttlora_cores"), False),
    "a tensor with an endless name": (_named(PREFIX + "x" * 100_000 + ".ttlora_cores"), False),
    "a base model as path": (_config(base_model_name_or_path="../../outside"), False),
    "a revision as path": (_config(revision="../../outside"), True),
    "a method as path": (_config(peft_type="../../outside"), False),
    "a tensor of holes": (_header({f"{PREFIX}q_proj.ttlora_cores": _tensor([2**38], 2**40)}, 2**40), False),
    "a tensor beyond the file": (_header({f"{PREFIX}q_proj.ttlora_cores": _tensor([2**38], 2**40)}), False),
    "sides that overflow": (_header({f"{PREFIX}q_proj.ttlora_cores": _tensor([2**40, 2**40], 0)}), False),
    "many names": (_many_names, False),
    "many lists": (_many_lists, False),
    "many sizes": (_many_sizes, False),
    "lists in lists": (_deep, False),
    "a huge update": (_huge_update, False),
    "a huge rank": (_config(r=2**31 - 1), False),
    "pickles beside": (_pickle_beside, True),
    "a pickle instead": (_pickle_instead, False),
    "a pickle by another name": (_pickle_disguised, False),
    "code of its own": (_own_code, True),
}
