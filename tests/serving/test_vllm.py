"""The resolver of the vLLM plugin, beside a stand-in for vLLM: what it serves, and what it declines."""

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.adapters.damage import damage
from tests.serving.hostile import HOSTILE
from ttlora import TTLoraConfig
from ttlora.adapters.read import CONFIG_NAME, WEIGHTS_NAME, read_adapter

STANDS_FOR = ("vllm", "vllm.lora", "vllm.lora.peft_helper", "vllm.lora.request", "vllm.lora.resolver")


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class Registry:
    def __init__(self) -> None:
        self.resolvers: dict[str, Any] = {}

    def get_supported_resolvers(self) -> set[str]:
        return set(self.resolvers)

    def register_resolver(self, name: str, resolver: Any) -> None:
        assert name not in self.resolvers
        self.resolvers[name] = resolver


class PEFTHelper:
    @classmethod
    def from_local_dir(cls, lora_path: str, longest: int | None) -> Any:
        return json.loads((Path(lora_path) / "adapter_config.json").read_text())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    modules = {name: ModuleType(name) for name in STANDS_FOR}
    modules["vllm.lora.request"].LoRARequest = LoRARequest  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolver = object  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolverRegistry = Registry()  # type: ignore[attr-defined]
    helper = type("PEFTHelper", (PEFTHelper,), {"from_local_dir": PEFTHelper.__dict__["from_local_dir"]})
    modules["vllm.lora.peft_helper"].PEFTHelper = helper  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ttlora.serving.vllm", raising=False)
    yield importlib.import_module("ttlora.serving.vllm")
    sys.modules.pop("ttlora.serving.vllm")


@pytest.fixture(scope="module")
def home(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with adapters, good and bad ones."""
    home = tmp_path_factory.mktemp("served") / "adapters"
    model = AutoModelForCausalLM.from_pretrained(llama)
    torch.manual_seed(0)
    get_peft_model(model, TTLoraConfig(task_type="CAUSAL_LM", init_weights=False)).save_pretrained(home / "stars")
    shutil.copytree(home / "stars", home / "team" / "run" / "adapter")
    shutil.copytree(home / "stars", home.parent / "outside")
    (home / "link").symlink_to(home.parent / "outside")
    (home / "half").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (home / "half" / file).symlink_to(home.parent / "outside" / file)
    shutil.copytree(home / "stars", home / "damaged")
    (home / "damaged" / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    shutil.copytree(home / "stars", home / "elsewhere")
    config = json.loads((home / "stars" / "adapter_config.json").read_text())
    content = json.dumps(config | {"base_model_name_or_path": "another/model"})
    (home / "elsewhere" / "adapter_config.json").write_text(content)
    head = AutoModelForSequenceClassification.from_pretrained(llama)
    get_peft_model(head, TTLoraConfig(task_type="SEQ_CLS")).save_pretrained(home / "head")
    return home


def registered(plugin: Any, home: Path, cache: Path, **more: str) -> Any:
    plugin.register({"TTLORA_ADAPTERS": str(home), "TTLORA_CACHE": str(cache), **more})
    return plugin.LoRAResolverRegistry.resolvers["ttlora"]


def resolve(resolver: Any, model: object, name: str) -> Any:
    return asyncio.run(resolver.resolve_lora(str(model), name))


@pytest.mark.parametrize("name", ["stars", "team/run"])
def test_an_adapter_is_found_by_its_name(name: str, plugin: Any, home: Path, llama: Path, tmp_path: Path) -> None:
    resolver = registered(plugin, home, tmp_path / "cache")
    request = resolve(resolver, llama, name)
    assert (request.lora_name, Path(request.lora_path).parent) == (name, tmp_path / "cache")
    assert json.loads((Path(request.lora_path) / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert 0 < request.lora_int_id < 2**31
    again = resolve(resolver, os.path.relpath(llama), name)
    assert again == request


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("damaged", "damaged"),
        ("elsewhere", "it was trained on another/model, and vLLM serves"),
        ("head", "has no place for what was trained beside the updates"),
        ("link", "the name leads out of"),
        ("half", "is a link out of"),
        ("../outside", "the name leads out of"),
        (".", "the name leads out of"),
        ("", "it is no name of a folder"),
        ("stars\0", "it is no name of a folder"),
        ("a" * 5000, "it is no name of a folder"),
        ("team", "holds no adapter_config.json"),
    ],
)
def test_what_cannot_be_served_is_declined(
    name: str, why: str, plugin: Any, home: Path, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = registered(plugin, home, tmp_path / "cache")
    assert resolve(resolver, llama, name) is None
    (record,) = caplog.records
    assert record.name == "vllm.plugins.ttlora"
    assert why in record.getMessage()
    assert "\n" not in record.getMessage()
    assert not list((tmp_path / "cache").glob("*/adapter_config.json"))


@pytest.mark.parametrize(
    "name", ["nobody", "stars/adapter_config.json", "/etc", "nobody/../nobody", "～", "%2e%2e", "\ud800"]
)
def test_a_name_that_nobody_has_is_left_to_others(
    name: str, plugin: Any, home: Path, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = registered(plugin, home, tmp_path / "cache")
    assert resolve(resolver, llama, name) is None
    assert not [record for record in caplog.records if "leads out" not in record.getMessage()]


def test_an_absolute_name_is_declined(plugin: Any, home: Path, llama: Path, tmp_path: Path) -> None:
    assert resolve(registered(plugin, home, tmp_path / "cache"), llama, str(home.parent / "outside")) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say what a process took")
def test_three_hundred_hostile_folders(plugin: Any, home: Path, llama: Path, tmp_path: Path, caplog: Any) -> None:
    import resource

    served = tmp_path / "served"
    served.mkdir()
    resolver = registered(plugin, served, tmp_path / "cache", TTLORA_CACHE_SIZE="10MB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = set()
    for seed in range(300):
        folder = Path(shutil.copytree(home / "stars", served / str(seed)))
        damage(folder, seed)
        caplog.clear()
        request = resolve(resolver, llama, str(seed))
        outcomes.add(request is None)
        if request is None:
            assert len(caplog.records) <= 1, seed
            assert all("\n" not in record.getMessage() for record in caplog.records), seed
        else:
            lora = read_adapter(request.lora_path)
            assert lora.config.peft_type == "LORA"
            assert all(torch.isfinite(lora.load(key)).all() for tensors in lora.modules.values() for key in tensors)
        shutil.rmtree(folder, ignore_errors=True)
    assert outcomes == {True, False}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "served"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 200


def peak() -> int:
    """The most kB that the process has held since the last reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the peak of memory set back")
@pytest.mark.parametrize(("harm", "is_served"), HOSTILE.values(), ids=HOSTILE)
def test_a_folder_made_to_do_harm(
    harm: Any, is_served: bool, plugin: Any, home: Path, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(home.parent / "outside", tmp_path / "outside")
    shutil.copytree(home / "stars", tmp_path / "served" / "stars")
    harm(tmp_path / "served" / "stars")
    there = set((tmp_path / "served").rglob("*")) | set((tmp_path / "outside").rglob("*"))
    resolver = registered(plugin, tmp_path / "served", tmp_path / "cache", TTLORA_CACHE_SIZE="10MB")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    request = resolve(resolver, llama, "stars")
    most = peak()
    assert (request is not None) == is_served
    if is_served:
        assert Path(request.lora_path).parent == tmp_path / "cache"
        assert sorted(os.listdir(request.lora_path)) == ["README.md", CONFIG_NAME, WEIGHTS_NAME]
        harmless = resolver.cache.expanded(home / "stars") / WEIGHTS_NAME
        assert (Path(request.lora_path) / WEIGHTS_NAME).read_bytes() == harmless.read_bytes()
    else:
        (record,) = caplog.records
        assert "\n" not in record.getMessage()
        assert len(record.getMessage()) < 1500
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "cache")} == {
        tmp_path / "served",
        tmp_path / "outside",
        *there,
    }
    assert (most - before) / 2**10 < 50


@given(name=st.text(max_size=40) | st.from_regex(r"[./~]{1,6}(outside|stars)?[./]{0,4}", fullmatch=True))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_three_hundred_hostile_names(name: str, plugin: Any, home: Path, llama: Path, tmp_path: Path) -> None:
    resolver = registered(plugin, home, tmp_path / "cache")
    request = resolve(resolver, llama, name)
    if request is not None:
        assert (home / name).resolve().is_relative_to(home)
        assert Path(request.lora_path).parent == resolver.cache.folder


def test_a_worker_finds_what_has_made_room(plugin: Any, home: Path, llama: Path, tmp_path: Path) -> None:
    resolver = registered(plugin, home, tmp_path / "cache")
    request = resolve(resolver, llama, "stars")
    shutil.rmtree(request.lora_path)
    helper = sys.modules["vllm.lora.peft_helper"].PEFTHelper
    assert helper.from_local_dir(request.lora_path, None)["peft_type"] == "LORA"
    with pytest.raises(FileNotFoundError):
        helper.from_local_dir(str(tmp_path / "cache" / "unknown"), None)


def test_registering_again_changes_nothing(plugin: Any, home: Path, tmp_path: Path) -> None:
    resolver = registered(plugin, home, tmp_path / "cache")
    assert registered(plugin, home, tmp_path / "other") is resolver


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"TTLORA_ADAPTERS": "/nowhere"}, "TTLORA_ADAPTERS names /nowhere, which is no folder"),
        ({"TTLORA_CACHE_SIZE": "big"}, "TTLORA_CACHE_SIZE 'big' is no size"),
    ],
)
def test_wrong_use_is_told_at_the_start(
    variables: dict[str, str], complaint: str, plugin: Any, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(plugin.UserError, match=complaint):
        registered(plugin, home, tmp_path / "cache", **variables)


def test_vllm_without_adapters_of_ours_imports_nothing() -> None:
    code = "import sys, ttlora_vllm; ttlora_vllm.register(); print('ttlora' in sys.modules or 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TTLORA_ADAPTERS"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).stdout == b"False\n"
