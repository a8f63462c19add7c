"""Damaged adapter folders end in one clear line, or in a sane result; nothing is left behind, and memory is not."""

import collections
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.adapters.damage import damage
from ttlora import BottleneckConfig, LorettaRepConfig, LortaConfig, MetaTTConfig, TTLoraConfig
from ttlora.adapters.read import read_adapter
from ttlora.cli.main import main

ATTENTION = ["q_proj", "v_proj"]
CONFIGS = {
    "tt": lambda: TTLoraConfig(r=2, target_modules=ATTENTION, init_weights=False),
    "tt-head": lambda: TTLoraConfig(r=2, target_modules=ATTENTION, modules_to_save=["lm_head"], init_weights=False),
    "tt-patterns": lambda: TTLoraConfig(
        r=3, target_modules=["q_proj", "down_proj"], shape_pattern={"down_proj": [2, 4, 4, 4]}, init_weights=False
    ),
    "lora": lambda: LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=False),
    "lora-patterns": lambda: LoraConfig(r=2, target_modules=ATTENTION, rank_pattern={"v_proj": 1}, use_rslora=True),
    "dora": lambda: LoraConfig(r=2, target_modules=ATTENTION, use_dora=True),
    "rep": lambda: LorettaRepConfig(r=2, tt_rank=2, target_modules=ATTENTION, init_weights=False),
    "meta-tt": lambda: MetaTTConfig(r=2, target_modules=ATTENTION, shape="auto", init_weights=False),
    "lorta": lambda: LortaConfig(r=2, target_modules=ATTENTION, init_weights=False),
    "bottleneck": lambda: BottleneckConfig(r=2, tt_rank=2, target_modules=["o_proj"], init_weights=False),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
}
COMMANDS = ("inspect", "export", "round", "import", "merge")
MOST_MEGABYTES = 200


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A tiny model, and whole adapters for it."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    LlamaForCausalLM(config).save_pretrained(root / "model")
    folders = {}
    for name, make in CONFIGS.items():
        folders[name] = root / name
        get_peft_model(LlamaForCausalLM.from_pretrained(root / "model"), make()).save_pretrained(root / name)
    return root / "model", folders


def run(command: str, folder: Path, model: Path, output: Path, seed: int) -> int:
    flags: dict[str, list[Any]] = {
        "inspect": ["--json"] if seed % 2 else [],
        "export": ["--output", output],
        "round": ["--output", output, "--r", 1],
        "import": ["--output", output, "--json"],
        "merge": ["--output", output, "--model", model],
    }
    return main([command, str(folder), *map(str, flags[command])])


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def check(command: str, status: int, out: str, err: str, output: Path, seed: int) -> None:
    """One clear line, or a sane result; what was written can be read."""
    if status == 2:
        assert out == ""
        assert err.startswith("ttlora: error: ")
        assert err.count("\n") == 1
        assert "unexpected" not in err
        assert len(err) < 1100
        assert err.strip().isprintable()
        return
    assert status == 0, err
    assert out
    if command == "import" or (command == "inspect" and seed % 2):
        json.loads(out, parse_constant=refuse_constant)
    if command in ("export", "round", "import"):
        read_adapter(output)
    if command == "merge":
        weights = LlamaForCausalLM.from_pretrained(output).state_dict()
        assert all(torch.isfinite(weight).all() for weight in weights.values())


def walk(
    seeds: range, places: tuple[Path, dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> collections.Counter[tuple[str, int]]:
    """Damage a folder for each seed, and give it to every command."""
    model, folders = places
    import resource  # Unix has it alone

    outcomes: collections.Counter[tuple[str, int]] = collections.Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        folder = Path(shutil.copytree(list(folders.values())[seed % len(folders)], tmp_path / "adapter"))
        damage(folder, seed)
        for command in COMMANDS:
            capsys.readouterr()
            status = run(command, folder, model, tmp_path / "out", seed)
            out, err = capsys.readouterr()
            try:
                check(command, status, out, err, tmp_path / "out", seed)
            except Exception as error:
                raise AssertionError(f"seed {seed}, {command}: {status} {out[:300]!r} {err[:600]!r}") from error
            assert sorted(path.name for path in tmp_path.iterdir()) == (
                ["adapter", "out"] if status == 0 and command != "inspect" else ["adapter"]
            ), f"seed {seed}, {command}"
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            outcomes[command, status] += 1
        shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert grown < MOST_MEGABYTES
    return outcomes


def test_whole_folders_are_no_damaged_ones(places, tmp_path, capsys):
    model, folders = places
    outcomes = {
        (name, command)
        for name in folders
        for command in COMMANDS
        if run(command, folders[name], model, tmp_path / f"{name}-{command}", 0) == 0
    }
    assert {name for name, command in outcomes if command == "inspect"} == set(folders)
    assert {name for name, command in outcomes if command == "export"} == {"tt", "tt-patterns", "meta-tt", "lorta"}
    assert {name for name, command in outcomes if command == "round"} == {"tt", "tt-head", "tt-patterns", "meta-tt"}
    assert {name for name, command in outcomes if command == "import"} == {"lora", "lora-patterns"}
    assert {name for name, command in outcomes if command == "merge"} == set(folders) - {"bottleneck"}


def test_damaged_folders(places, tmp_path, capsys):
    outcomes = walk(range(150), places, tmp_path, capsys)
    assert {status for command, status in outcomes if command == "inspect"} == {0, 2}


@pytest.mark.slow
def test_a_thousand_damaged_folders(places, tmp_path, capsys):
    outcomes = walk(range(1000), places, tmp_path, capsys)
    with capsys.disabled():
        print(dict(sorted(outcomes.items())))
