"""Models are found as folders, built-in names or names on the hub, or refused in one line."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from transformers import BertConfig, GPT2Config

from ttlora.errors import UserError
from ttlora.models.skeleton import build_skeleton

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)


def save_config(folder: Path, **changes: object) -> str:
    BertConfig(**TINY).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return str(folder)


def test_the_class_is_the_one_that_the_config_names(tmp_path: Path) -> None:
    model = save_config(tmp_path, architectures=["BertForSequenceClassification"])
    assert type(build_skeleton(model)).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("architectures", [None, [], ["NoSuchModel"], ["GPT2Model"], ["AutoModel"]])
def test_else_it_is_the_bare_model(tmp_path: Path, architectures: list[str] | None) -> None:
    assert type(build_skeleton(save_config(tmp_path, architectures=architectures))).__name__ == "BertModel"


def test_tied_weights_count_once(tmp_path: Path) -> None:
    GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=30, n_positions=16, architectures=["GPT2LMHeadModel"]
    ).save_pretrained(tmp_path)
    skeleton = build_skeleton(str(tmp_path))
    assert skeleton.lm_head.weight is skeleton.transformer.wte.weight
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == 30 * 8 + 16 * 8 + (12 * 8 * 8 + 13 * 8) + 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "no-such-type"}, "cannot be read"),
        ({"model_type": None}, "cannot be read"),
        ({"hidden_size": "wide"}, "cannot be read"),
        ({"hidden_size": 9}, "describes no model"),
        ({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "mine"}, "cannot be read"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_skeleton(save_config(tmp_path, **changes))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"'])
def test_a_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as error:
        build_skeleton(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        build_skeleton(str(tmp_path))


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match="is a file"):
        build_skeleton(str(file))


@pytest.mark.parametrize("model", ["/no/such/folder", "./no-such-folder", "no/such/folder"])
def test_a_folder_that_is_not_there(model: str) -> None:
    with pytest.raises(UserError, match="is not there: give its place as `model`"):
        build_skeleton(model)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("model", "suggestion"), [("llama2-7B", "llama2-7b"), ("llama3", "llama3-8b"), ("mixtral", "mixtral-8x7b")]
)
def test_a_near_miss_is_suggested(model: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {suggestion}\?") as error:
        build_skeleton(model)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_hub")
def test_no_hub() -> None:
    with pytest.raises(UserError, match=r"the hub could not be reached.*built-in architectures: deberta-base"):
        build_skeleton("some-one/some-model-that-is-not-there")


def test_a_name_that_cannot_be_on_the_hub() -> None:
    with pytest.raises(UserError, match="no such folder, and the hub has no model 'no name'; built-in"):
        build_skeleton("no name")
