"""Adapter folders are read whole, or refused in one line before anything is loaded."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from ttlora import TTLoraConfig
from ttlora.adapters.read import read_adapter
from ttlora.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query.ttlora_cores"


def save(bert: Path, folder: Path, config: Any) -> Path:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(bert, tmp_path_factory.mktemp("saved"), TTLoraConfig(task_type="SEQ_CLS", init_weights=False))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_config(folder: Path, **values: object) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, **values}))


def change_tensor(folder: Path, key: str, tensor: torch.Tensor) -> None:
    save_file({**load_file(folder / WEIGHTS), key: tensor}, folder / WEIGHTS, metadata={"format": "pt"})


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_adapter(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_modules_and_head(saved: Path, bert: Path) -> None:
    adapter = read_adapter(saved)
    assert isinstance(adapter.config, TTLoraConfig)
    assert adapter.config.base_model_name_or_path == str(bert)
    assert len(adapter.modules) == 4
    assert [key.rpartition(".")[2] for tensors in adapter.modules.values() for key in tensors] == ["ttlora_cores"] * 4
    assert sum(info.parameters for info in adapter.others.values()) == 2 * 32 + 2
    assert torch.equal(adapter.load(QUERY), load_file(saved / WEIGHTS)[QUERY])


def test_layers_in_their_order(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=11, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    get_peft_model(BertModel(config), TTLoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    assert [name.split(".")[2] for name in read_adapter(tmp_path).modules] == [str(layer) for layer in range(11)]


def test_a_runs_output_folder(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "adapter")
    assert read_adapter(tmp_path).folder == tmp_path / "adapter"
    assert read_adapter(str(tmp_path)).config == read_adapter(saved).config


def test_lora(bert: Path, tmp_path: Path) -> None:
    adapter = read_adapter(save(bert, tmp_path, LoraConfig(task_type="SEQ_CLS", r=2)))
    assert len(adapter.modules) == 4
    assert {len(tensors) for tensors in adapter.modules.values()} == {2}
    assert len(adapter.others) == 2


def test_prompts_belong_to_no_module(bert: Path, tmp_path: Path) -> None:
    adapter = read_adapter(save(bert, tmp_path, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)))
    assert [info.shape for info in adapter.modules[""].values()] == [(3, 32)]
    assert len(adapter.others) == 2


def test_shapes_by_module(bert: Path, tmp_path: Path) -> None:
    config = TTLoraConfig(
        task_type="SEQ_CLS",
        r=3,
        shape_pattern={"query": [32, 32], r"layer\.1\..*\.value": [2] * 10},
        rank_pattern={"query": [7]},
    )
    assert len(read_adapter(save(bert, tmp_path, config)).modules) == 4


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "there is no folder")
    refused(folder / WEIGHTS, "is a file; name the adapter's folder")
    refused(tmp_path, "holds no adapter_config.json, so it is no adapter of PEFT; there is one in its folder 'copy'")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(
        folder, "adapter_model.safetensors is not there: .* is no whole adapter folder; adapter_model.bin is a pickle"
    )
    (folder / "adapter_model.bin").unlink()
    refused(folder, "adapter_model.safetensors is not there: .* is no whole adapter folder$")


@pytest.mark.parametrize("length", [0, 5, 8, 100, 3_000, -1])
def test_a_truncated_file(folder: Path, length: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:length])
    refused(folder, "is damaged or cut short")


def forged(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A file whose header says something else."""

    def forge(whole: bytes) -> bytes:
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    return forge


@pytest.mark.parametrize(
    "forge",
    [
        lambda whole: struct.pack("<Q", 2**62) + whole[8:],
        lambda whole: struct.pack("<Q", 20) + b"x" * 20,
        lambda whole: whole + b"more",
        forged(lambda header: header[QUERY].update(shape=[10**9, 10**9])),
        forged(lambda header: header[QUERY].update(shape=[-1])),
        forged(lambda header: header[QUERY].update(data_offsets=[0, 10**15])),
        forged(lambda header: header[QUERY].update(dtype="F99")),
        forged(lambda header: header.update({QUERY: 5})),
    ],
)
def test_a_forged_file(folder: Path, forge: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS).write_bytes(forge((folder / WEIGHTS).read_bytes()))
    refused(folder, "is damaged or cut short")


def test_control_characters_in_a_name(folder: Path) -> None:
    change_tensor(folder, "base_model.model.\x1b[2J.ttlora_cores", torch.ones(3))
    refused(folder, r"names a tensor 'base_model.model.\\x1b")


@pytest.mark.parametrize(
    "tensor", [torch.ones(3), torch.ones(261), torch.ones(2, 130), torch.ones(()), torch.ones(260, dtype=torch.int8)]
)
def test_cores_that_are_not_those_of_the_config(folder: Path, tensor: torch.Tensor) -> None:
    change_tensor(folder, QUERY, tensor)
    refused(folder, "query")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 4}, "belong to different adapters"),
        ({"shape": [16, 64]}, "belong to different adapters"),
        ({"shape": [2] * 10**5}, "100,000 dims; 256 are the most"),
        ({"shape": [10**30, 10**30], "r": 10**30}, "is no config of TTLORA"),
        ({"shape": [5]}, "not a list of at least two"),
        ({"weight_sizes": {}}, "does not say the size of .*query"),
        ({"weight_sizes": {"query": [10**9, 10**9], "value": [32, 32]}}, "has the product 1,024"),
        ({"weight_sizes": {"query": [32]}}, "is no config of TTLORA"),
        ({"shape": 5}, "is no config of TTLORA"),
        ({"shape_pattern": 5}, "is no config of TTLORA"),
        ({"shape_pattern": {"query": "wide"}}, "is no config of TTLORA"),
        ({"r": "five"}, "is no config of TTLORA"),
        ({"r": [5, 5]}, "ranks"),
        ({"base_model_name_or_path": "a\x1b[2J"}, "base_model_name_or_path="),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path="),
        ({"peft_type": "NO_SUCH"}, "names the method 'NO_SUCH'"),
        ({"peft_type": None}, "names the method None"),
        ({"peft_type": ["LORA"]}, r"names the method \['LORA'\]"),
        ({"peft_type": "LORA", "r": 5}, "holds no tensor of LORA"),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, values: dict[str, object], message: str) -> None:
    change_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_none(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    refused(folder, CONFIG)


def test_a_config_of_many_megabytes(folder: Path) -> None:
    with (folder / CONFIG).open("wb") as file:
        file.truncate(2**24 + 1)
    refused(folder, "too many for the config of an adapter")
