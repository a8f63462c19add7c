"""Every mistake ends in one line that names the value and the way out, with status 2 and nothing written."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.conftest import command, sentiment_rows, write_jsonl
from ttlora.adapters.read import MODEL_PREFIX
from ttlora.finetune import folder

ROWS = sentiment_rows(12, seed=1)


def assert_one_line(outcome, *parts: str, status: int = 2) -> None:
    assert outcome.status == status
    assert outcome.out == ""
    assert outcome.err.startswith("ttlora: error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


@pytest.fixture
def train(bert, tmp_path, ttlora):
    """`ttlora train` on files of the given rows, with a check that wrong use leaves nothing behind."""

    def call(*flags: object, rows: object = ROWS, validation: object = None):
        files = {}
        for name, content in (("train", rows), ("validation", validation or rows)):
            files[name] = tmp_path / f"{name}.jsonl"
            if isinstance(content, str):
                files[name].write_text(content)
            else:
                write_jsonl(files[name], content)
        common = {
            "--train": files["train"],
            "--validation": files["validation"],
            "--output": tmp_path / "out",
            "--model": bert,
            "--task": "file",
            "--text-column": "sentence",
            "--epochs": 1,
            "--threads": 1,
        }
        given = common | dict(zip(flags[::2], flags[1::2], strict=True))
        outcome = ttlora("train", *(part for pair in given.items() for part in pair))
        assert (tmp_path / "out").exists() == (outcome.status == 0)
        return outcome

    return call


def test_the_fixture_itself_is_no_mistake(train):
    assert train().status == 0


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--train", "nowhere.jsonl"], ["nowhere.jsonl is not there"]),
        (["--text-column", "text"], ["there is no column 'text', only sentence, label, idx"]),
        (["--label-column", "y"], ["there is no column 'y', only sentence, label, idx"]),
        (["--shape", "16,16,16"], ["[16, 16, 16] has the product 4,096", "1,024 entries", "'auto'"]),
        (["--shape", "big"], ["--shape is 'big'"]),
        (["--r", "0"], ["--r is 0: a rank is at least 1"]),
        (["--r", "-3"], ["--r is -3"]),
        (["--targets", "q_proj"], ["'q_proj' is no module", "its linear modules are query, key, value, dense"]),
        (["--task", "glue/sst"], ["no task is called 'glue/sst': did you mean glue/sst2?"]),
        (["--method", "tt-lor"], ["no method is called 'tt-lor': did you mean tt-lora?"]),
        (["--model", "/nowhere/bert"], ["model folder /nowhere/bert is not there"]),
        (["--epochs", "0"], ["--epochs is 0, and has to be at least 1"]),
        (["--epochs", "many"], ["--epochs is 'many', and has to be a whole number"]),
        (["--learning-rate", "-1"], ["--learning-rate is -1.0, and has to be a number above 0"]),
        (["--learning-rat", "1e-3"], ["unknown option --learning-rat: did you mean --learning-rate?"]),
        (["--data", "somewhere"], ["--data goes with a named task"]),
        (["--method", "head", "--r", "4"], ["--r means nothing to method head: leave it out"]),
        (["--max-train-examples", "1"], ["--max-train-examples 1 draws only rows of label"]),
        (["--shape", "quary=4,8,8,4"], ["the shape of 'quary' belongs to no adapted module; adapted are value, dense"]),
        (["--settings", "{shape_pattern: {quary: auto}}"], ["the shape of 'quary' belongs to no adapted module"]),
        (["--settings", "{rank_pattern: {quary: 3}}"], ["the rank of 'quary' belongs to no adapted module"]),
        (["--method", "lora", "--settings", "{alpha_pattern: {quary: 3}}"], ["the alpha of 'quary' belongs to no"]),
        (["--settings", "exclude_modules=[quary]"], ["'quary' is no module of the model"]),
        (["--settings", "exclude_modules=quary"], ["exclude_modules is 'quary', a regular expression that fits no"]),
        (["--targets", "query,classifier"], ["'classifier' belongs to the head, which trains whole"]),
        (["--threads", "100000"], ["--threads is 100000, and has to be at most 1,024"]),
        (["--text-column", "null"], ["there is no column 'null', only sentence, label, idx"]),
        (["--text-column", "caf\udce9"], ["'caf\\udce9' is not UTF-8 text"]),
    ],
)
def test_wrong_flags(flags, parts, train):
    assert_one_line(train(*flags), *parts)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("", ["train.jsonl has no rows"]),
        (json.dumps(ROWS[0]) + "\n{nonsense\n", ["train.jsonl, line 2 is no JSON"]),
        ([row for row in ROWS if row["label"] == 1], ["all labels are 1, so there is nothing to learn"]),
        ([*ROWS, {"sentence": "x", "idx": 1}], ["train.jsonl, line 13: there is no column 'label'"]),
        ([*ROWS, {"sentence": "x", "label": None}], ["train.jsonl, line 13 has no label: column 'label' is empty"]),
        ([*ROWS, {"sentence": "x", "label": ""}], ["line 13 has no label"]),
        ([{"sentence": "x", "label": float(n)} for n in range(3)], ["say --label-kind classification or"]),
    ],
)
def test_wrong_training_rows(rows, parts, train):
    assert_one_line(train(rows=rows), *parts)


def test_label_that_is_only_in_validation(train):
    validation = [*ROWS, {"sentence": "x", "label": 2}]
    assert_one_line(
        train(validation=validation), "validation.jsonl, line 13: label 2 is none of the training labels (0, 1)"
    )


def test_output_folder_in_use(train, tmp_path, ttlora, bert):
    assert train().status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    flags = ("--model", bert, "--task", "glue/sst2", "--data", tmp_path)
    assert_one_line(
        ttlora("train", *flags, "--output", tmp_path / "out"), "out holds a finished run: name another folder"
    )
    assert_one_line(ttlora("train", *flags, "--output", tmp_path), f"output folder {tmp_path} holds other files")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_resume_with_another_recipe(train, tmp_path, ttlora, bert):
    assert train().status == 0
    recipe = tmp_path / "out" / "recipe.yaml"
    assert_one_line(
        ttlora("train", "--config", recipe, "--batch-size", 7, "--resume"), "was started with batch_size 32, not 7"
    )


def test_misspelt_key_in_yaml(tmp_path, ttlora):
    (tmp_path / "r.yaml").write_text("model: m\ntask: glue/sst2\noutput: o\nlearning_rat: 1e-3\n")
    assert_one_line(
        ttlora("train", "--config", tmp_path / "r.yaml"),
        f"--config {tmp_path / 'r.yaml'}: unknown key 'learning_rat': did you mean learning_rate?",
    )


@pytest.mark.parametrize("name", ["some/model", "some-model"])
def test_hub_that_cannot_be_reached(name, train, monkeypatch):
    """The address belongs to no one (RFC 2606), so this is what a machine without a network sees."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("ttlora.models.hub.HfApi", lambda: __import__("huggingface_hub").HfApi("https://hub.invalid"))
    started = time.monotonic()
    outcome = train("--model", name)
    assert_one_line(outcome, f"the hub could not be reached for model '{name}'; give a local folder as --model")
    assert time.monotonic() - started < 10


def test_task_from_a_hub_that_cannot_be_reached(bert, tmp_path, ttlora, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("ttlora.models.hub.HfApi", lambda: __import__("huggingface_hub").HfApi("https://hub.invalid"))
    outcome = ttlora("train", "--model", bert, "--task", "glue/sst2", "--output", tmp_path / "out")
    assert_one_line(outcome, "the hub could not be reached for dataset 'nyu-mll/glue'", "--data DIR")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_adapter(size, copy, ttlora):
    file = copy / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert_one_line(ttlora("evaluate", copy), f"{file} is damaged", "restore it from a copy, or train again")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "task.json"])
def test_adapter_that_lacks_a_file(name, copy, ttlora):
    (copy / "adapter" / name).unlink()
    assert_one_line(ttlora("evaluate", copy), str(copy / "adapter"), "no whole adapter folder")


@pytest.mark.parametrize("name", ["adapter/adapter_config.json", "adapter/task.json", "recipe.yaml", "result.json"])
def test_damaged_files_of_a_run(name, copy, ttlora):
    (copy / name).write_text('{"half": ')
    assert_one_line(ttlora("evaluate", copy), str(copy / name))


def test_adapter_that_lacks_a_tensor(copy, ttlora):
    file = copy / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    dropped = next(name for name in weights if "value" in name)
    save_file({name: weight for name, weight in weights.items() if name != dropped}, file)
    assert_one_line(
        ttlora("evaluate", copy),
        "does not fit model",
        f"it has no {dropped.removeprefix(MODEL_PREFIX)}, which the model needs",
    )


def other_bert(bert: Path, folder: Path, **sizes: int) -> Path:
    config = BertConfig.from_pretrained(bert, **sizes)
    BertModel(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / file, folder)
    return folder


WIDER, SHALLOWER, DEEPER = {"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("tt-lora", WIDER),
        ("tt-lora", SHALLOWER),
        ("tt-lora", DEEPER),
        ("lora", WIDER),
        ("lora", SHALLOWER),
        ("lora", DEEPER),
        ("head", WIDER),
    ],
)
def test_adapter_for_another_model(method, sizes, bert, data, tmp_path, ttlora):
    flags = ("--data", data, "--epochs", 1, "--threads", 1, "--max-train-examples", 8, "--method", method)
    assert ttlora("train", "--model", bert, "--task", "glue/sst2", *flags, "--output", tmp_path / "out").status == 0
    other = other_bert(bert, tmp_path / "other", **sizes)
    outcome = ttlora("evaluate", tmp_path / "out", "--model", other)
    assert_one_line(outcome, "does not fit model", str(other))


def test_shapes_are_named_where_an_adapter_does_not_fit(bert, data, tmp_path, ttlora):
    flags = ("--data", data, "--epochs", 1, "--threads", 1, "--max-train-examples", 8, "--method", "head")
    assert ttlora("train", "--model", bert, "--task", "glue/sst2", *flags, "--output", tmp_path / "out").status == 0
    other = other_bert(bert, tmp_path / "other", hidden_size=64)
    assert_one_line(
        ttlora("evaluate", tmp_path / "out", "--model", other),
        "bert.pooler.dense.weight is 32x32 in it and 64x64 in the model",
    )


def test_in_a_process_of_its_own(bert, data, tmp_path):
    """Nothing that a library prints on the way gets between the user and the line."""
    flags = ("--model", bert, "--task", "glue/sst2", "--data", data, "--output", tmp_path / "out", "--shape", "3,5")
    done = subprocess.run(command("train", *flags), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ttlora: error: method tt-lora does not fit model")
    assert done.stderr.count("\n") == 1
    assert "[3, 5] has the product 15" in done.stderr


def refuse_everything(error):
    def refuse(*_, **__):
        raise error

    return refuse


@pytest.mark.parametrize(
    ("target", "name", "error", "reason"),
    [
        (torch, "save", OSError(28, "No space left on device"), "No space left on device"),
        (torch, "save", RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "the disk"),
        (torch, "save", RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "the disk"),
        (folder, "cast_weights", SafetensorError("I/O error: No space left on device (os error 28)"), "No space left"),
        (shutil, "copyfile", OSError(30, "Read-only file system"), "Read-only file system"),
    ],
)
def test_disk_that_is_full_ends_in_one_line(target, name, error, reason, bert, data, tmp_path, ttlora, monkeypatch):
    monkeypatch.setattr(target, name, refuse_everything(error))
    flags = ("--model", bert, "--task", "glue/sst2", "--data", data, "--output", tmp_path / "out", "--epochs", 1)
    outcome = ttlora("train", *flags)
    assert outcome.status == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"ttlora: error: {tmp_path / 'out'} cannot be written to: ")
    assert reason in last
    assert not (tmp_path / "out" / "adapter").exists()
    assert not list((tmp_path / "out").glob("*.tmp"))
    monkeypatch.undo()
    assert ttlora("train", *flags, "--resume").status == 0


def test_an_adapter_of_a_model_with_other_modules(finished, llama, ttlora):
    outcome = ttlora("evaluate", finished, "--model", llama)
    assert_one_line(
        outcome,
        "does not fit model",
        "the model has none of the modules that it adapts: intermediate.dense, output.dense, value",
    )


def test_answers_that_leave_no_room_for_a_prompt(bert, llama, tmp_path, ttlora):
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=40, vocab_size=24)).save_pretrained(
        tmp_path / "gpt2"
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama / file, tmp_path / "gpt2")
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "the film", "label": "was great"}] * 4)
    flags = ("--task", "file", "--train", rows, "--validation", rows, "--label-kind", "generation")
    for count in (40, 100_000):
        outcome = ttlora(
            "train", "--model", tmp_path / "gpt2", *flags, "--output", tmp_path / "out", "--max-new-tokens", count
        )
        assert_one_line(
            outcome, f"--max-new-tokens is {count}, and model", "takes 40 tokens, prompt and answer together"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["compare", "search", "evaluate", "predict"])
def test_several_processes(name, bert, data, finished, tmp_path, ttlora, monkeypatch):
    """As torchrun starts them."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "c.yaml").write_text(f"models: [{bert}]\ntasks: [glue/sst2]\nmethods: [tt-lora]\ndata: {data}\n")
    (tmp_path / "s.yaml").write_text(f"model: {bert}\ntask: glue/sst2\ndata: {data}\nspace: {{r: [1, 2]}}\n")
    arguments = {
        "compare": ("--config", tmp_path / "c.yaml", "--output", tmp_path / "out"),
        "search": ("--config", tmp_path / "s.yaml", "--output", tmp_path / "out"),
        "evaluate": (finished,),
        "predict": (finished, "--input", data / "sst2" / "validation.jsonl"),
    }
    assert_one_line(
        ttlora(name, *arguments[name]), "2 processes were started for one task", "start one, without torchrun"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "nowhere"),
        ("predict", "nowhere", "--input", "rows.jsonl"),
        ("inspect", "nowhere"),
        ("report", "nowhere", "--output", "out"),
    ],
)
def test_a_path_that_is_not_there(arguments, ttlora):
    assert_one_line(ttlora(*arguments), "error: nowhere is not there")


def test_a_run_is_near(finished, ttlora):
    above = f"is no output folder of ttlora train: name the folder above, {finished}"
    assert_one_line(ttlora("evaluate", finished / "adapter"), f"adapter {above}")
    assert_one_line(ttlora("evaluate", finished / "result.json"), f"result.json {above}")
    assert_one_line(ttlora("evaluate", finished.parent), f"name one of the folders in it, such as {finished}")


def test_a_temporary_folder_that_takes_nothing(bert, data, tmp_path, ttlora, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/proc")
    (tmp_path / "s.yaml").write_text(f"model: {bert}\ntask: glue/sst2\ndata: {data}\nspace: {{r: [1, 2]}}\n")
    outcome = ttlora("search", "--config", tmp_path / "s.yaml", "--output", tmp_path / "out")
    assert_one_line(outcome, "TMPDIR is /proc, and no temporary file can be made there")
    assert not (tmp_path / "out").exists()
