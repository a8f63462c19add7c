"""Adapters expanded once, kept within bounds, and put back for who comes again."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ttlora import LortaConfig, MetaTTConfig, TTLoraConfig
from ttlora.adapters.export import lora_bytes, to_lora
from ttlora.adapters.read import WEIGHTS_NAME, read_adapter
from ttlora.errors import UserError
from ttlora.serving.cache import LoraCache


@pytest.fixture(scope="module")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five adapters of one shape."""
    folders = []
    for seed in range(5):
        torch.manual_seed(seed)
        config = TTLoraConfig(task_type="CAUSAL_LM", init_weights=False)
        folders.append(tmp_path_factory.mktemp("adapter") / str(seed))
        get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(folders[-1])
    return folders


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def names(cache: LoraCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"sources", ".lock"}


def test_an_adapter_is_expanded_once(adapters: list[Path], tmp_path: Path) -> None:
    cache = LoraCache(tmp_path / "cache", 10**9)
    entry = cache.expanded(adapters[0])
    held = load_file(entry / "adapter_model.safetensors")
    expected = to_lora(read_adapter(adapters[0])).tensors
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[key], expected[key]) for key in held)
    written = (entry / "adapter_model.safetensors").stat().st_mtime_ns
    assert LoraCache(tmp_path / "cache", 10**9).expanded(adapters[0]) == entry
    assert (entry / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert names(cache) == {entry.name}


@pytest.mark.parametrize(
    "config",
    [
        TTLoraConfig(task_type="CAUSAL_LM", init_weights="dota"),
        TTLoraConfig(task_type="CAUSAL_LM", init_weights=False, rank_pattern={"o_proj": 5}),
        MetaTTConfig(task_type="CAUSAL_LM", init_weights=False),
        LortaConfig(task_type="CAUSAL_LM", init_weights=False),
    ],
    ids=["dota", "two ranks", "meta-tt", "lorta"],
)
def test_the_room_that_an_adapter_needs(config: Any, llama: Path, tmp_path: Path) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(tmp_path / "adapter")
    cache = LoraCache(tmp_path / "cache", 10**9)
    size = sum(tensor.nbytes for tensor in load_file(cache.expanded(tmp_path / "adapter") / WEIGHTS_NAME).values())
    assert lora_bytes(read_adapter(tmp_path / "adapter")) == size
    with pytest.raises(UserError, match=f"takes {size:,} bytes as plain LoRA, more than the {size - 1:,}"):
        LoraCache(tmp_path / "smaller", size - 1).expanded(tmp_path / "adapter")


def test_what_was_asked_for_the_longest_time_ago_makes_room(adapters: list[Path], tmp_path: Path) -> None:
    one = size_of(LoraCache(tmp_path / "one", 10**9).expanded(adapters[0]))
    cache = LoraCache(tmp_path / "cache", int(3.5 * one))
    entries = []
    for number, adapter in enumerate([*adapters[:3], adapters[0], *adapters[3:]]):
        entries.append(cache.expanded(adapter))
        # as if some time had passed
        os.utime(entries[-1], (number, number))
    assert names(cache) == {entries[0].name, *(entry.name for entry in entries[4:])}
    assert sum(map(size_of, (cache.folder / name for name in names(cache)))) <= cache.most_bytes


def test_what_others_have_put_there_stays(adapters: list[Path], tmp_path: Path) -> None:
    cache = LoraCache(tmp_path / "cache", 10**9)
    theirs = shutil.copytree(adapters[4], tmp_path / "cache" / "theirs")
    os.utime(theirs, (0, 0))
    cache.most_bytes = int(1.5 * size_of(cache.expanded(adapters[0])))
    for adapter in adapters[1:3]:
        last = cache.expanded(adapter)
    assert names(cache) == {"theirs", last.name}


def test_one_that_has_made_room_is_put_back(adapters: list[Path], tmp_path: Path) -> None:
    one = size_of(LoraCache(tmp_path / "one", 10**9).expanded(adapters[0]))
    cache = LoraCache(tmp_path / "cache", int(1.5 * one))
    first, second = cache.expanded(adapters[0]), cache.expanded(adapters[1])
    assert not first.exists()
    cache.restore(first)
    assert first.exists()
    assert not second.exists()
    cache.restore(tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_an_adapter_that_changes_is_expanded_anew(adapters: list[Path], tmp_path: Path) -> None:
    shutil.copytree(adapters[0], tmp_path / "adapter")
    cache = LoraCache(tmp_path / "cache", 10**9)
    before = cache.expanded(tmp_path / "adapter")
    shutil.copytree(adapters[1], tmp_path / "adapter", dirs_exist_ok=True)
    after = cache.expanded(tmp_path / "adapter")
    assert before != after == LoraCache(tmp_path / "cache", 10**9).expanded(adapters[1])
    shutil.rmtree(before)
    with pytest.raises(UserError, match="holds another adapter now than when it was asked for"):
        cache.restore(before)


def test_several_at_once(adapters: list[Path], tmp_path: Path) -> None:
    one = size_of(LoraCache(tmp_path / "one", 10**9).expanded(adapters[0]))
    caches = [LoraCache(tmp_path / "cache", int(2.5 * one)) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(cache.expanded, adapters[number % 5]) for number, cache in enumerate(caches * 8)]
        entries = [ask.result() for ask in asked]
    assert len(set(entries)) == 5
    assert len(names(caches[0])) <= 3


def test_refusals(adapters: list[Path], llama: Path, tmp_path: Path) -> None:
    length = (adapters[0] / "adapter_model.safetensors").stat().st_size
    with pytest.raises(UserError, match=rf"has {length:,} bytes, and {length - 1:,} may be served"):
        LoraCache(tmp_path / "cache", length - 1).expanded(adapters[0])
    with pytest.raises(
        UserError, match=rf"takes [\d,]+ bytes as plain LoRA, more than the {length:,} of the whole cache"
    ):
        LoraCache(tmp_path / "cache", length).expanded(adapters[0])
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama), LoraConfig()).save_pretrained(tmp_path / "lora")
    cache = LoraCache(tmp_path / "cache", 10**9)
    with pytest.raises(UserError, match="is an adapter of LORA"):
        cache.expanded(tmp_path / "lora")
    with pytest.raises(UserError, match="nowhere is not there"):
        cache.expanded(tmp_path / "nowhere")
    shutil.copytree(adapters[0], tmp_path / "damaged")
    weights = tmp_path / "damaged" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="is damaged or cut short"):
        cache.expanded(tmp_path / "damaged")
    assert names(cache) == set()
