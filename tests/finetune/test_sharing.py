"""Trackers, model cards and uploads: what others see of a run."""

import struct
from types import SimpleNamespace

import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

from tests.finetune.test_resume import killed, log, make_recipe
from ttlora.errors import RunError, UserError
from ttlora.finetune import run, sharing
from ttlora.finetune.trainer import TaskTrainer
from ttlora.record import Record


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """The scalars in TensorBoard's files: records of a length, its checksum, an event, and its checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_trackers_file_holds_the_curves(bert, data, tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    output = tmp_path / "out"
    run.train(make_recipe(bert, data, output, epochs=3, report_to="tensorboard"), quiet=True)
    found, lines = curves(output / "tensorboard"), log(output)
    for tag, name in (
        ("train/loss", "loss"),
        ("eval/loss", "validation_loss"),
        ("eval/accuracy", "validation_accuracy"),
    ):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in lines if name in line]
        assert found[tag] == expected
        assert len(expected) >= 3


def test_no_tracker_is_told_unasked(bert, data, tmp_path):
    run.train(make_recipe(bert, data, tmp_path / "out", epochs=1), quiet=True)
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [
        "adapter",
        "log.jsonl",
        "recipe.yaml",
        "result.json",
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"report_to": "wandb"}, "`report_to` wandb needs the package wandb, which is not installed: python -m pip"),
        ({"report_to": "tensorbord,wandb"}, "`report_to` is 'tensorbord'.*did you mean tensorboard\\?"),
        ({"push_to_hub": "a/b/c"}, "`push_to_hub` is 'a/b/c', which is no name on the hub"),
        ({"push_to_hub": "me/adapter"}, "`push_to_hub` me/adapter: the hub cannot be asked who you are"),
    ],
)
def test_what_cannot_be_reached_is_refused_before_anything_is_written(bert, data, tmp_path, keys, message, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(UserError, match=message):
        run.train(make_recipe(bert, data, tmp_path / "out", **keys), quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("method", "of_peft"), [("tt-lora", True), ("bitfit", False)])
def test_the_model_card(bert, data, tmp_path, method, of_peft):
    recipe = make_recipe(bert, data, tmp_path / "out", method=method, epochs=1)
    record = run.train(recipe, quiet=True)
    _, about, text = (tmp_path / "out" / "adapter" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(about) == {"tags": ["ttlora", method], **({"library_name": "peft"} if of_peft else {})}
    assert f"# {method} on {bert.name}: glue/sst2\n" in text
    assert f"| accuracy | {record.metrics['accuracy']:.4f} |" in text
    assert f"{record.adapter_parameters:,} parameters in the model" in text
    assert ("PeftModel.from_pretrained" in text) == of_peft
    told = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert told["learning_rate"] == recipe.learning_rate
    assert "output" not in told


def test_a_model_of_the_hub_is_named_in_the_cards_head(bert, data, tmp_path):
    record = run.train(make_recipe(bert, data, tmp_path / "out", epochs=1), quiet=True)
    folder = tmp_path / "out" / "adapter"
    sharing.write_card(folder, Record(**{**vars(record), "model": "org/model"}))
    head = (folder / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head)["base_model"] == "org/model"


class Hub:
    """Stands for the hub's client."""

    def __init__(self, refuses: bool = False):
        self.refuses, self.told = refuses, []

    def whoami(self):
        return SimpleNamespace(name="me")

    def create_repo(self, name, exist_ok):
        if self.refuses:
            raise ValueError("403 Forbidden")
        self.told.append(name)

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.told.append((repo_id, sorted(item.name for item in folder_path.iterdir())))


class TestPush:
    def test_the_adapter_with_its_card(self, bert, data, tmp_path, monkeypatch):
        hub = Hub()
        monkeypatch.setattr(sharing, "HfApi", lambda: hub)
        run.train(make_recipe(bert, data, tmp_path / "out", epochs=1, push_to_hub="me/adapter"), quiet=True)
        files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "task.json"]
        assert hub.told == ["me/adapter", ("me/adapter", files)]

    def test_a_refusal_loses_nothing(self, bert, data, tmp_path, monkeypatch):
        monkeypatch.setattr(sharing, "HfApi", lambda: Hub(refuses=True))
        with pytest.raises(RunError, match=r"the run is done, but .* could not be uploaded as me/adapter: 403"):
            run.train(make_recipe(bert, data, tmp_path / "out", epochs=1, push_to_hub="me/adapter"), quiet=True)
        assert (tmp_path / "out" / "result.json").exists()

    def test_a_run_that_was_killed_pushes_at_its_end(self, bert, data, tmp_path, monkeypatch):
        hub = Hub()
        monkeypatch.setattr(sharing, "HfApi", lambda: hub)
        keys = {"epochs": 2, "push_to_hub": "me/adapter"}
        with killed(TaskTrainer, "training_step", 9):
            run.train(make_recipe(bert, data, tmp_path / "out", **keys), quiet=True)
        assert hub.told == []
        run.train(make_recipe(bert, data, tmp_path / "out", resume=True, **keys), quiet=True)
        assert hub.told[0] == "me/adapter"
