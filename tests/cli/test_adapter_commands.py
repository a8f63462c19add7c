"""The commands that make something of a trained adapter: merge, export, import, round."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.conftest import sentiment_rows, write_jsonl
from ttlora import TTLoraConfig

TOKENS = torch.arange(4, 20).reshape(2, 8)


def save(llama: Path, folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tt(llama, tmp_path_factory) -> Path:
    """A TT-LoRA adapter of a causal model; not to be changed."""
    config = TTLoraConfig(r=5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False)
    return save(llama, tmp_path_factory.mktemp("adapters") / "tt", config)


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory) -> Path:
    """A LoRA adapter of a causal model; not to be changed."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
    return save(llama, tmp_path_factory.mktemp("adapters") / "lora", config)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits.float()


def adapted(llama: Path, folder: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), folder))


def test_export(llama, tt, tmp_path, ttlora):
    outcome = ttlora("export", tt, "--output", tmp_path / "lora")
    assert (outcome.status, outcome.err) == (0, "")
    size = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert outcome.out.startswith(f"LoRA of rank 5 for 4 modules, {size:,} bytes ")
    wanted = adapted(llama, tt)
    assert (adapted(llama, tmp_path / "lora") - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_export_as_json_and_in_16_bits(tt, tmp_path, ttlora):
    outcome = ttlora("export", tt, "--output", tmp_path / "lora", "--dtype", "bfloat16", "--json")
    result = json.loads(outcome.out)
    assert (result["r"], result["dtype"], result["parameters"]) == (5, "bfloat16", 2 * 5 * (64 + 48))
    assert result["bytes"] == (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert [module["rank"] for module in result["modules"]] == [5] * 4


@pytest.mark.parametrize(
    ("r", "note"),
    [(16, ""), (17, "vLLM needs --max-lora-rank 32 for it\n"), (400, "vLLM needs --max-lora-rank 512 for it\n")],
)
def test_ranks_that_vllm_has_to_be_told_of(r, note):
    from ttlora.cli.export import _vllm_note

    assert _vllm_note(r) == note.strip()
    assert "up to 512" in _vllm_note(513)


def test_merge_of_a_run(finished, bert, data, tmp_path, ttlora):
    outcome = ttlora("merge", finished, "--output", tmp_path / "model")
    assert (outcome.status, outcome.err) == (0, "")
    assert "BertForSequenceClassification with 8 updates added and " in outcome.out
    assert "classifier.weight" in outcome.out
    rows = [json.loads(line) for line in (data / "sst2" / "validation.jsonl").read_text().splitlines()]
    lines = ttlora("predict", finished, "--input", data / "sst2" / "validation.jsonl").out.splitlines()
    classify = pipeline("text-classification", str(tmp_path / "model"), top_k=None)
    for row, line in zip(rows, lines, strict=True):
        wanted = json.loads(line)["probabilities"]
        found = {answer["label"]: answer["score"] for answer in classify(row["sentence"])[0]}
        assert found == pytest.approx(wanted, abs=2e-6)


def test_merge_of_a_run_on_numbers(bert, tmp_path, ttlora):
    rows = [{"text": row["sentence"], "score": row["label"] + 0.5} for row in sentiment_rows(8, seed=1)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = (
        "--task",
        "file",
        "--train",
        file,
        "--validation",
        file,
        "--text-column",
        "text",
        "--label-column",
        "score",
    )
    run = ("--label-kind", "regression", "--epochs", 1, "--threads", 1, "--output", tmp_path / "run")
    assert ttlora("train", "--model", bert, *flags, *run).status == 0
    assert ttlora("merge", tmp_path / "run", "--output", tmp_path / "model").status == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        found = model(**tokenizer(rows[0]["text"], return_tensors="pt")).logits.item()
    line = ttlora("predict", tmp_path / "run", "--input", file).out.splitlines()[0]
    assert found == pytest.approx(json.loads(line)["prediction"], abs=1e-5)


@pytest.mark.parametrize("kind", ["tt", "lora"])
def test_merge_of_a_plain_folder(kind, llama, tmp_path, ttlora, request):
    folder = request.getfixturevalue(kind)
    outcome = ttlora("merge", folder, "--output", tmp_path / "model", "--json")
    result = json.loads(outcome.out)
    assert (outcome.status, outcome.err) == (0, "")
    assert (result["class"], result["dtype"], result["model"]) == ("LlamaForCausalLM", "bfloat16", str(llama))
    assert len(result["merged"]) == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    before = load_file(llama / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj"
    update = model.get_parameter(f"{key}.weight").float() - before[f"{key}.weight"].float()
    wanted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32), folder)
    delta = wanted.get_submodule(f"base_model.model.{key}").get_delta_weight("default")
    assert (update - delta).norm() < 0.02 * delta.norm()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (
        tokenizer("the film was great").input_ids
        == AutoTokenizer.from_pretrained(llama)("the film was great").input_ids
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_merge_into_a_model_that_has_moved(tt, llama, tmp_path, ttlora):
    folder = Path(shutil.copytree(tt, tmp_path / "tt"))
    file = folder / "adapter_config.json"
    file.write_text(file.read_text().replace(str(llama), str(tmp_path / "gone")))
    outcome = ttlora("merge", folder, "--output", tmp_path / "model")
    gone = tmp_path / "gone"
    assert outcome.err == f"ttlora: error: model folder {gone} is not there: give its place as --model\n"
    assert not (tmp_path / "model").exists()
    assert ttlora("merge", folder, "--output", tmp_path / "model", "--model", llama).status == 0


def test_import_and_back(llama, lora, tmp_path, ttlora):
    outcome = ttlora("import", lora, "--output", tmp_path / "tt", "--json")
    result = json.loads(outcome.out)
    assert (outcome.status, outcome.err) == (0, "")
    assert result["relative_error"] < 1e-6
    assert result["parameters_before"] == 2 * 4 * (64 + 48)
    assert result["parameters"] == sum(module["parameters"] for module in result["modules"])
    assert ttlora("export", tmp_path / "tt", "--output", tmp_path / "lora").status == 0
    wanted = adapted(llama, lora)
    assert (adapted(llama, tmp_path / "lora") - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_import_at_a_rank(lora, tmp_path, ttlora, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    outcome = ttlora("import", lora, "--output", tmp_path / "tt", "--r", 2, "--shape", "q_proj=32,32 v_proj=4,4,32")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert " ".join(lines[0].split()) == "module in model.layers rows | columns TT-rank parameters relative error"
    assert lines[1].split()[:6] == ["0.self_attn.q_proj", "32", "|", "32", "2", "128"]
    assert 0 < float(lines[1].split()[6]) < 1
    assert lines[-3].split() == ["parameters", "896", "before,", "432", "now"]
    assert json.loads((tmp_path / "tt" / "adapter_config.json").read_text())["r"] == 2


def test_round(tt, tmp_path, ttlora):
    results = {}
    for flag, value in (("--r", 2), ("--tolerance", 0.6), ("--parameters", "1KB")):
        outcome = ttlora("round", tt, "--output", tmp_path / flag, flag, value, "--json")
        assert (outcome.status, outcome.err) == (0, "")
        results[flag] = json.loads(outcome.out)
        assert results[flag]["parameters"] < results[flag]["parameters_before"] == 2 * (352 + 256)
        inspected = json.loads(ttlora("inspect", tmp_path / flag, "--json").out)
        assert [module["ranks"] for module in inspected["modules"]] == [
            module["ranks"] for module in results[flag]["modules"]
        ]
    assert all(max(module["ranks"]) == 2 for module in results["--r"]["modules"])
    assert all(module["relative_error"] <= 0.6 for module in results["--tolerance"]["modules"])
    assert 400 < results["--parameters"]["parameters"] <= 500
    assert "relative error" in ttlora("round", tt, "--output", tmp_path / "table", "--r", 3).out


def assert_one_line(outcome, *parts: str) -> None:
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("ttlora: error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


COMMANDS = {"merge": (), "export": (), "import": (), "round": ("--r", 2)}


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_folders(command, tt, lora, tmp_path, ttlora):
    flags = COMMANDS[command]
    source = lora if command == "import" else tt
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    assert_one_line(ttlora(command, tmp_path / "nowhere", "--output", tmp_path / "out", *flags), "nowhere is not there")
    assert_one_line(ttlora(command, tmp_path / "used", "--output", tmp_path / "out", *flags), "no adapter_config.json")
    assert_one_line(
        ttlora(command, source, "--output", tmp_path / "used", *flags), "used holds other files (file): name another"
    )
    assert_one_line(ttlora(command, source, "--output", tmp_path / "used" / "file", *flags), "file is a file: name a")
    assert_one_line(ttlora(command, source, *flags), "--output is missing")
    assert_one_line(ttlora(command, "--output", tmp_path / "out", *flags), " is missing: see ttlora")
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert_one_line(ttlora(command, copy, "--output", tmp_path / "out", *flags), "is damaged or cut short")
    if command in ("export", "round"):
        assert_one_line(ttlora(command, lora, "--output", tmp_path / "out", *flags), "is an adapter of LORA")
    if command == "import":
        assert_one_line(ttlora(command, tt, "--output", tmp_path / "out", *flags), "is an adapter of TTLORA")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "used"]
    assert (tmp_path / "used" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ((), "none of --r, --tolerance and --parameters is given: give one"),
        (("--r", 2, "--tolerance", 0.1), "--r and --tolerance are both given: give one of them"),
        (("--r", 2, "--parameters", 400), "--r and --parameters are both given: give one of them"),
        (("--parameters", "many"), "--parameters 'many' is no size; write 40KB, 1MB, 220KiB or a number"),
        (("--parameters", 0), "--parameters is 0, and at rank 1 the adapter would still have 104"),
        (("--parameters", "1MB"), "--parameters is 500,000, and the adapter has 1,216: there is nothing to round"),
        (("--r", 0), "--r is 0: a rank is a whole number from 1 on"),
        (("--r", 9), "there is nothing to round"),
        (("--tolerance", 1.5), "--tolerance is 1.5, and has to be a number between 0 and 1"),
        (("--tolerance", "nan"), "--tolerance is 'nan'"),
    ],
)
def test_wrong_flags_of_round(flags, part, tt, tmp_path, ttlora):
    assert_one_line(ttlora("round", tt, "--output", tmp_path / "out", *flags), part)
    assert not (tmp_path / "out").exists()


def test_wrong_flags_of_the_others(tt, lora, tmp_path, ttlora, finished):
    output = ("--output", tmp_path / "out")
    assert_one_line(ttlora("export", tt, *output, "--dtype", "int8"), "--dtype is 'int8'", "float32 or bfloat16")
    assert_one_line(ttlora("import", lora, *output, "--shape", "3,5"), "has the product 15")
    assert_one_line(ttlora("import", lora, *output, "--r", 2, "--tolerance", 0.1), "--r and --tolerance are both given")
    assert_one_line(ttlora("import", lora, *output, "--shape", "big"), "--shape is 'big'")
    assert_one_line(ttlora("export", finished, *output), "classifier.weight", "ttlora merge writes the whole model")
    assert_one_line(
        ttlora("merge", tt, *output, "--model", "/nowhere/llama"), "model folder /nowhere/llama is not there"
    )
    assert not (tmp_path / "out").exists()


def test_an_interrupted_merge_leaves_nothing(tt, tmp_path, ttlora, monkeypatch):
    from transformers import PreTrainedModel

    def fail(self: Any, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    outcome = ttlora("merge", tt, "--output", tmp_path / "out")
    assert (outcome.status, outcome.err) == (
        1,
        f"ttlora: error: {tmp_path / 'out'} cannot be written to: No space left on device\n",
    )
    assert not list(tmp_path.iterdir())


def test_a_terminated_merge_leaves_nothing(tt, tmp_path, ttlora, monkeypatch):
    from transformers import PreTrainedModel

    def terminate(self: Any, folder: Path) -> None:
        (Path(folder) / "model.safetensors").write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", terminate)
    outcome = ttlora("merge", tt, "--output", tmp_path / "parent" / "out")
    assert (outcome.status, outcome.err) == (143, "ttlora: stopped\n")
    assert not list(tmp_path.iterdir())


WRITERS = {"export": (), "round": ("--r", 2), "merge": (), "import": ()}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_is_one_line(command, there, tt, lora, tmp_path, ttlora, monkeypatch):
    import resource  # Unix has it alone

    # Python would cut short the bytecode of what is imported meanwhile, and others would read it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    output = tmp_path / "out"
    if there:
        output.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        outcome = ttlora(command, lora if command == "import" else tt, "--output", output, *WRITERS[command])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == f"ttlora: error: {output} cannot be written to: File too large\n"
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if there else [])


@pytest.mark.parametrize("command", WRITERS)
def test_the_current_folder_is_filled(command, tt, lora, tmp_path, ttlora, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = ttlora(command, lora if command == "import" else tt, "--output", ".", *WRITERS[command])
    assert (outcome.status, outcome.err) == (0, "")
    marker = "config.json" if command == "merge" else "adapter_config.json"
    assert {marker, "model.safetensors" if command == "merge" else "adapter_model.safetensors"} <= set(os.listdir())
    assert not [name for name in os.listdir() if name.startswith(".")]


@pytest.mark.parametrize("command", WRITERS)
def test_outputs_that_cannot_be_made(command, tt, lora, tmp_path, ttlora, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nothing").symlink_to("nowhere")
    # the work does not begin
    monkeypatch.setattr("ttlora.adapters.read.read_header", lambda file: pytest.fail("it was read"))
    for output, part in {
        "": "--output is empty: name a file or a folder",
        "file/out": f"{tmp_path / 'file'} is no folder",
        "nothing": "nothing is a link to nothing",
        "nothing/out": f"{tmp_path / 'nothing'} is no folder",
        "n" * 300: "File name too long",
        "/proc/out": "output /proc/out cannot be made: ",
    }.items():
        outcome = ttlora(command, lora if command == "import" else tt, "--output", output, *WRITERS[command])
        assert_one_line(outcome, part)
    assert sorted(os.listdir()) == ["file", "nothing"]


def test_each_folder_has_a_card(llama, tt, lora, tmp_path, ttlora):
    made = {
        "export": (
            "LoRA",
            ("export", tt),
            "An adapter of TT-LoRA as plain LoRA, with the same update. Its weights",
        ),
        "import": ("TT", ("import", lora, "--r", 2), "A LoRA adapter as a tensor train, with a relative error of"),
        "round": ("TT", ("round", tt, "--r", 2), "Another adapter at smaller TT-ranks, with a relative error of"),
        "merge": ("model", ("merge", tt), "The base model with the update of an adapter (TTLORA) added to its weights"),
    }
    for name, (kind, arguments, told) in made.items():
        assert ttlora(*arguments, "--output", tmp_path / name).status == 0
        _, about, text = (tmp_path / name / "README.md").read_text().split("---\n", 2)
        assert f" {llama.name}" in text or f"# {llama.name}" in text
        assert told in text
        assert ("import ttlora" in text) == (kind == "TT")
        assert ("library_name: peft" in about) == (kind != "model")
