"""The command `ttlora plan`: one JSON object, or a table that fits a terminal; wrong use in one line."""

import json

import pytest

from ttlora.cli.plan import plan
from ttlora.errors import UserError


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    plan("llama3-8b", json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["adapter_parameters"] == 212_480
    assert result["bytes_16bit"] == 424_960
    assert result["full_parameters"] == 8_030_261_248
    assert result["lora_r8_parameters"] == 3_407_872
    assert result["matrices"][1] == {
        "name": "v_proj",
        "out_features": 1024,
        "in_features": 4096,
        "shape": [16, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16],
        "ranks": [1, *[10] * 10, 1],
        "parameters": 3_120,
        "count": 32,
    }
    assert sum(matrix["parameters"] * matrix["count"] for matrix in result["matrices"]) == 212_480


def test_shapes_by_module(capsys: pytest.CaptureFixture[str]) -> None:
    shape = "q_proj=16,4,4,4,2,2,2,2,4,4,4,16 v_proj=16,4,4,2,2,2,2,4,4,4,16"
    plan("llama3-8b", shape=shape, r=10, targets="q_proj,v_proj", json=True)
    assert json.loads(capsys.readouterr().out)["adapter_parameters"] == 212_480


def test_one_shape_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    plan("deberta-base", shape="12,8,8,3,8,8,12", r=5, targets="in_proj", json=True)
    assert [matrix["parameters"] for matrix in json.loads(capsys.readouterr().out)["matrices"]] == [995]


def test_auto_is_the_default_and_not_the_papers_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    plan("roberta-base", shape="auto", json=True)
    result = json.loads(capsys.readouterr().out)
    assert {matrix["name"]: tuple(matrix["shape"]) for matrix in result["matrices"]} == {
        "value": (8, 8, 12, 12, 8, 8),
        "attention.output.dense": (8, 8, 12, 12, 8, 8),
        "intermediate.dense": (12, 16, 16, 12, 8, 8),
        "output.dense": (8, 8, 12, 16, 16, 12),
    }
    assert {max(matrix["ranks"]) for matrix in result["matrices"]} == {2}


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    plan("llama2-7b", targets="q_proj, o_proj", json=True)
    assert [matrix["name"] for matrix in json.loads(capsys.readouterr().out)["matrices"]] == ["q_proj", "o_proj"]


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plan("llama2-7b")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines == [line.rstrip() for line in lines]
    text = "\n".join(lines)
    assert "16,16,16 | 16,16,16" in text
    assert "32 × 1,760" in text
    assert "112,640 parameters, 225,280 bytes (220.0 KiB) in 16 bit" in text
    assert "4,194,304 parameters, 37 times the adapter" in text
    assert "TT-rank 5: the paper's for llama2-7b (Table IV)" in text
    assert "not aligned" not in text


def test_the_table_marks_shapes_that_are_not_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    plan("roberta-base")
    text = capsys.readouterr().out
    assert "≤ 48 *" in text
    assert "* not aligned" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "16,x"}, "16,x"),
        ({"shape": "q_proj=16,16 q_proj=16,16"}, "q_proj"),
        ({"shape": ""}, "shape"),
        ({"targets": " , "}, "`targets` is empty"),
        ({"budget": "10"}, "10, and too small: the smallest adapter takes 6,144 bytes"),
        ({"budget": "small"}, "'small' is no size"),
        ({"r": -1}, "`r` is -1, and has to be at least 1"),
    ],
)
def test_wrong_use(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        plan("llama2-7b", **arguments)
    assert "\n" not in str(error.value)
