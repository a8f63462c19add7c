"""Adapter folders are read whole, or refused in one line before anything is loaded."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from tests.adapters.answers import of_bert
from ttlora import BottleneckConfig, LorettaRepConfig, TTLoraConfig
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
    return save(bert, tmp_path_factory.mktemp("saved"), of_bert(task_type="SEQ_CLS", init_weights=False))


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
    config = of_bert(
        task_type="SEQ_CLS",
        r=3,
        shape_pattern={"query": [32, 32], r"layer\.1\..*\.value": [2] * 10},
        rank_pattern={"query": [7]},
    )
    assert len(read_adapter(save(bert, tmp_path, config)).modules) == 4


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere is not there")
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
        ({"base_model_name_or_path": "a\x1b[2J"}, "is no name of a model"),
        ({"base_model_name_or_path": ["a"]}, "is not text or null"),
        ({"peft_type": "NO_SUCH"}, "names the method 'NO_SUCH'"),
        ({"peft_type": None}, "names the method None"),
        ({"peft_type": ["LORA"]}, r"names the method \['LORA'\]"),
        ({"peft_type": "LORA", "r": 5}, "holds no tensor of LORA"),
        ({"target_parameters": 5}, "target_parameters=5 is not a list or null"),
        ({"target_modules": "("}, "target_modules has '\\(', which is no name and no regular expression"),
        ({"modules_to_save": [5]}, "modules_to_save="),
        ({"task_type": ["SEQ_CLS"]}, "task_type="),
        ({"inference_mode": "yes"}, "inference_mode='yes' is not true or false"),
        ({"auto_mapping": 5}, "auto_mapping=5 is not an object or null"),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, values: dict[str, object], message: str) -> None:
    change_config(folder, **values)
    refused(folder, message)


@pytest.fixture
def lora(bert: Path, tmp_path: Path) -> Path:
    return save(bert, tmp_path / "lora", LoraConfig(task_type="SEQ_CLS", r=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "two"}, "r='two' is not a whole number"),
        ({"r": 3}, "have the ranks 2 and 2, and the config says 3"),
        ({"r": 0}, "r=0 is not a positive integer"),
        ({"r": 10**9}, "the rank of 'r' is 1000000000 in the config, and no tensor has a side of more than 32"),
        ({"rank_pattern": {"nowhere": 10**9}}, "the rank of 'nowhere' is 1000000000"),
        ({"rank_pattern": {"query": "two"}}, "rank_pattern for 'query'='two' is not a positive integer"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern has '\(', which is no name and no regular expression"),
        ({"alpha_pattern": {"query": [1]}}, "alpha_pattern for 'query'"),
        ({"lora_alpha": None}, "lora_alpha=None is not a finite number"),
        ({"lora_dropout": 1.5}, "lora_dropout=1.5 is not a probability"),
        ({"use_rslora": 1.0}, "use_rslora=1.0 is not true or false"),
        ({"bias": "some"}, 'bias=\'some\' is not "none" or "all" or "lora_only"'),
        ({"layers_to_transform": ["a"]}, "layers_to_transform="),
        ({"layers_pattern": ["("], "layers_to_transform": [0]}, "layers_pattern has '\\('"),
        ({"target_parameters": 5}, "target_parameters=5 is not a list or null"),
    ],
)
def test_a_lora_config_that_does_not_fit(lora: Path, values: dict[str, object], message: str) -> None:
    change_config(lora, **values)
    refused(lora, message)


def test_numbers_that_lora_configs_hold_in_the_wild(lora: Path) -> None:
    change_config(lora, lora_alpha=0.5, lora_dropout=0, use_rslora=None, init_lora_weights="pissa_niter_4", new_field=1)
    assert read_adapter(lora).config.lora_alpha == 0.5


LORA_A = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        (LORA_A, torch.ones(2, 32, dtype=torch.int32), "entries of I32, which are no floating-point numbers"),
        (LORA_A, torch.ones(3, 32), "have the ranks 3 and 2"),
        (LORA_A, torch.ones(64), "they are no matrices"),
        (LORA_A, torch.ones(0), "has no entries .* ZeRO-3 does, they have to be gathered"),
        (LORA_A.removeprefix("base_model.model."), torch.ones(2, 32), "twice, with and without base_model.model."),
        ("base_model.model.lora_A.weight", torch.ones(2, 32), "names no module of a model"),
    ],
)
def test_lora_factors_that_do_not_fit(lora: Path, key: str, tensor: torch.Tensor, message: str) -> None:
    change_tensor(lora, key, tensor)
    refused(lora, message)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (LorettaRepConfig(task_type="SEQ_CLS"), {"tt_rank": 2}, "belong to different adapters"),
        (LorettaRepConfig(task_type="SEQ_CLS"), {"weight_sizes": {}}, "does not say the size of"),
        (LorettaRepConfig(task_type="SEQ_CLS"), {"shape": {"32": [5, 5]}}, "has the product 25"),
        (BottleneckConfig(task_type="SEQ_CLS"), {"r": 4}, "belong to different adapters"),
        (BottleneckConfig(task_type="SEQ_CLS"), {"tt_rank": 2}, "has no bottleneck_down.cores"),
        (BottleneckConfig(task_type="SEQ_CLS", tt_rank=2), {"tt_rank": 3}, "belong to different adapters"),
        (BottleneckConfig(task_type="SEQ_CLS", tt_rank=2), {"r": 10**6}, "is no bottleneck"),
    ],
)
def test_configs_of_other_methods_that_do_not_fit(
    config: Any, values: dict[str, object], message: str, bert: Path, tmp_path: Path
) -> None:
    folder = save(bert, tmp_path / "adapter", config)
    read_adapter(folder)
    change_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "itself"])
def test_what_is_no_file_is_not_read(name: str, kind: str, folder: Path) -> None:
    file = folder / name
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "endless" else name)
    refused(folder, name)


def test_a_config_in_the_encodings_of_json(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    wanted = read_adapter(folder).config
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / CONFIG).write_text(text, encoding)
        assert read_adapter(folder).config == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"r": 3, "r": 4}', "has the key 'r' twice"),
        ('{"alpha": NaN}', "holds NaN, which is no number"),
        ('{"peft_type": "TTLORA", "alpha": 1e999}', "alpha=inf is not a finite number"),
        ('{"r": ' + "9" * 5000 + "}", "is damaged"),
    ],
)
def test_json_that_means_nothing(text: str, message: str, folder: Path) -> None:
    (folder / CONFIG).write_text(text)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_none(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    refused(folder, CONFIG)


def test_a_config_of_many_megabytes(folder: Path) -> None:
    with (folder / CONFIG).open("wb") as file:
        file.truncate(2**24 + 1)
    refused(folder, "too many for the config of an adapter")


def test_the_file_is_opened_once_however_many_tensors_are_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ttlora.adapters import read

    opened = []
    monkeypatch.setattr(read, "safe_open", lambda *args, **options: opened.append(args) or safe_open(*args, **options))
    adapter = read_adapter(folder)
    for tensors in adapter.modules.values():
        for key in tensors:
            adapter.load(key)
    assert len(opened) == 1
