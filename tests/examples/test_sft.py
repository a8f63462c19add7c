"""The script for SFT with TRL, on a tiny model in a folder."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.conftest import write_jsonl

SCRIPT = Path(__file__).parents[2] / "examples" / "sft" / "sft.py"
SENTENCE = "the film was a lovely story about people"
ROWS = {
    "text": {"text": SENTENCE},
    "prompt": {"prompt": "the film was", "completion": " a lovely story"},
    "messages": {"messages": [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was fine"}]},
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture
def run(monkeypatch, tmp_path, llama):
    spec = importlib.util.spec_from_file_location("sft", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(rows, *options, model=llama):
        data = rows if isinstance(rows, Path) else write_jsonl(tmp_path / "rows.jsonl", rows)
        arguments = ["--model", model, "--data", data, "--output", tmp_path / "output", *options]
        monkeypatch.setattr("sys.argv", ["sft.py", *map(str, arguments)])
        module.main()
        return tmp_path / "output"

    return run


@pytest.mark.parametrize("kind", ROWS)
def test_it_trains_saves_and_speaks(kind, run, llama, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    if kind == "messages":
        (model / "chat_template.jinja").write_text(TEMPLATE)
    output = run([ROWS[kind]] * 24, "--learning-rate", 2e-2, "--epochs", 5, model=model)
    with safe_open(output / "adapter_model.safetensors", "pt") as file:
        assert all("ttlora_cores" in name for name in file.keys())  # noqa: SIM118
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)
    printed = capsys.readouterr().out
    losses = [json.loads(line.replace("'", '"'))["loss"] for line in printed.splitlines() if line.startswith("{'loss'")]
    assert float(losses[-1]) < float(losses[0]) - 0.1
    last = printed.splitlines()[-1]
    assert last.startswith("'the film' -> " if kind == "messages" else "'the film was")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"words": "x"}], "the first row has none of text, completion and prompt, messages"),
        ([], "the first row has none of text"),
        ([ROWS["text"], {}], "row 2 has no text"),
        ([ROWS["messages"]], "has no chat template"),
        (Path("nowhere.jsonl"), "nowhere.jsonl cannot be read as JSONL"),
    ],
)
def test_mistakes_are_told_in_one_line(rows, message, run):
    with pytest.raises(SystemExit, match=message) as stop:
        run(rows)
    assert "\n" not in str(stop.value)


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "mine").write_text("kept")
    with pytest.raises(SystemExit, match="is not empty"):
        run([ROWS["text"]])
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["mine"]
