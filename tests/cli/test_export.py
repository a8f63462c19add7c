"""`ttlora export --format gguf`, with a stand-in for llama.cpp's converter; tests/serving has the real one."""

import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import ttlora as library
from tests.conftest import llama_config
from ttlora import TTLoraConfig
from ttlora.errors import UserError

# tells in the file what it was given
TELLS = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
*_, outfile = sys.argv[:sys.argv.index("--outfile") + 2]
folder = Path(sys.argv[-1])
tensors = load_file(folder / "adapter_model.safetensors")
print("INFO: this is not for the user", file=sys.stderr)
print("nor is this")
Path(outfile).write_text(json.dumps({
    "arguments": sys.argv[1:],
    "config": json.loads((folder / "adapter_config.json").read_text()),
    "tensors": {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in tensors.items()},
}))
"""
READS = """
class GGUFReader:
    def __init__(self, file):
        if open(file).read() == "half":
            raise ValueError("cannot reshape array of size 127")
"""
BEGINS = "import os, signal, sys, time; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write('half')\n"


def save(model: Path, folder: Path, **options: object) -> Path:
    torch.manual_seed(0)
    config = TTLoraConfig(task_type="CAUSAL_LM", init_weights=False, **options)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tt(llama, tmp_path_factory) -> Path:
    """A TT-LoRA adapter of a causal model; not to be changed."""
    return save(llama, tmp_path_factory.mktemp("adapters") / "tt", r=5, target_modules=["q_proj", "down_proj"])


@pytest.fixture
def converter(tmp_path_factory, monkeypatch) -> Callable[[str], Path]:
    """Puts a converter of the given source where `LLAMA_CPP` says."""

    def put(source: str) -> Path:
        folder = tmp_path_factory.mktemp("llama.cpp")
        monkeypatch.setenv("LLAMA_CPP", str(folder))
        script: Path = folder / "convert_lora_to_gguf.py"
        script.write_text(source)
        (folder / "gguf-py").mkdir()
        (folder / "gguf-py" / "gguf.py").write_text(READS)
        return script

    return put


def assert_one_line(outcome, *parts: str, status: int = 2) -> None:
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith("ttlora: error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


def test_what_the_converter_is_given(llama, tt, tmp_path, ttlora, converter):
    converter(TELLS)
    file = tmp_path / "new" / "stars.gguf"
    outcome = ttlora("export", tt, "--output", file, "--format", "gguf", "--base", llama)
    assert (outcome.status, outcome.err) == (0, "")
    size = file.stat().st_size
    assert outcome.out == f"LoRA of rank 5 for 4 modules, {size:,} bytes ({size / 1024:.1f} KiB) of float32: {file}\n"
    told = json.loads(file.read_text())
    *flags, folder = told["arguments"]
    assert dict(zip(flags[::2], flags[1::2], strict=True)) == {
        "--base": str(llama),
        "--outfile": str(Path(folder).parents[1] / "adapter.gguf"),
        "--outtype": "f32",
    }
    # the file system of the output, so that the file can take its place at once; and the name that GGUF keeps
    assert Path(folder).parents[2] == tmp_path
    assert Path(folder).name == "stars"
    assert told["config"]["lora_alpha"] == told["config"]["r"] == 5
    layer = "base_model.model.model.layers.1"
    assert told["tensors"][f"{layer}.self_attn.q_proj.lora_A.weight"] == ["torch.float32", [5, 32]]
    assert told["tensors"][f"{layer}.mlp.down_proj.lora_B.weight"] == ["torch.float32", [32, 5]]
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == ["stars.gguf"]


def test_in_16_bits_and_as_json(llama, tt, tmp_path, ttlora, converter):
    converter(TELLS)
    for dtype, outtype in (("bfloat16", "bf16"), ("float16", "f16")):
        file = tmp_path / f"{outtype}.gguf"
        outcome = ttlora(
            "export", tt, "--output", file, "--format", "gguf", "--base", llama, "--dtype", dtype, "--json"
        )
        result, told = json.loads(outcome.out), json.loads(file.read_text())
        assert (result["format"], result["dtype"], result["bytes"]) == ("gguf", dtype, file.stat().st_size)
        assert told["arguments"][told["arguments"].index("--outtype") + 1] == outtype
        assert {kind for kind, _ in told["tensors"].values()} == {f"torch.{dtype}"}


@pytest.mark.skipif(sys.platform == "win32", reason="which files are programs is another matter there")
def test_a_converter_on_the_path(llama, tt, tmp_path, converter, monkeypatch):
    script = converter(TELLS)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.delenv("LLAMA_CPP")
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    lora = library.export(tt, tmp_path / "a.gguf", format="gguf", base=llama)
    assert lora.config.r == 5
    assert json.loads((tmp_path / "a.gguf").read_text())["config"]["r"] == 5


def test_no_converter(llama, tt, tmp_path, ttlora, monkeypatch):
    flags = ("--output", tmp_path / "a.gguf", "--format", "gguf", "--base", llama)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    assert_one_line(ttlora("export", tt, *flags), "is nowhere on the PATH: get llama.cpp's source, and name its folder")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert_one_line(ttlora("export", tt, *flags), f"LLAMA_CPP names {tmp_path}, which holds no convert_lora_to_gguf.py")
    assert not list(tmp_path.iterdir())


def test_wrong_flags(llama, tt, tmp_path, ttlora, converter):
    converter(TELLS)
    output = ("--output", tmp_path / "a.gguf")
    gguf = ("--format", "gguf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "used.gguf").write_text("mine")
    for flags, part in (
        ((*output, "--base", llama), "--base goes with --format gguf alone"),
        ((*output, *gguf), "--format gguf needs --base: name the folder"),
        ((*output, *gguf, "--base", ""), "--format gguf needs --base: name the folder"),
        ((*output, "--format", "ggml", "--base", llama), "--format is 'ggml', and has to be peft or gguf"),
        ((*output, *gguf, "--base", tmp_path / "nowhere"), "nowhere is no folder: name the one with the base model's"),
        ((*output, *gguf, "--base", "team/model"), "team/model is no folder: name the one with the base model's"),
        ((*output, *gguf, "--base", tmp_path / "empty"), "empty holds no config.json"),
        (("--output", tmp_path / "out", *gguf, "--base", llama), "out is to be one file: give it a name that ends in"),
        (("--output", tmp_path / "used.gguf", *gguf, "--base", llama), "used.gguf is there already: name another"),
        (("--output", tmp_path / "used.gguf" / "a.gguf", *gguf, "--base", llama), "used.gguf is no folder"),
    ):
        assert_one_line(ttlora("export", tt, *flags), part)
    assert sorted(os.listdir(tmp_path)) == ["empty", "used.gguf"]
    assert (tmp_path / "used.gguf").read_text() == "mine"
    with pytest.raises(UserError, match="`format` is 'ggml', and has to be peft or gguf"):
        library.export(tt, tmp_path / "a.gguf", format="ggml", base=llama)


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ({"hidden_size": 64}, "'model.layers.0.mlp.down_proj' of 32 x 48, and the model in "),
        ({"num_hidden_layers": 1}, " has no 'model.layers.1."),
    ],
)
def test_the_base_model_of_another_adapter(llama, tt, tmp_path, ttlora, converter, sizes, part):
    converter(TELLS)
    same = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    config = llama_config(**same)
    config.update(sizes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "other")
    flags = ("--format", "gguf", "--base", tmp_path / "other")
    outcome = ttlora("export", tt, "--output", tmp_path / "a.gguf", *flags)
    assert_one_line(outcome, part, "--base has to be the model that it was trained on")
    assert os.listdir(tmp_path) == ["other"]


def test_weights_that_the_converter_would_turn_round(tmp_path, ttlora, converter):
    converter(TELLS)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tt = save(tmp_path / "gpt2", tmp_path / "tt", target_modules=["c_attn"])
    flags = ("--output", tmp_path / "a.gguf", "--format", "gguf", "--base", tmp_path / "gpt2")
    assert_one_line(ttlora("export", tt, *flags), "'transformer.h.0.attn.c_attn' of ", "keeps its weight transposed")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "import sys; print('INFO: all is well', file=sys.stderr); sys.exit('Model X is not supported')",
            "failed: Model X is",
        ),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        (
            "from tqdm import tqdm; bar = tqdm(total=9); bar.update(3); raise OSError('no room')",
            "failed: OSError: no room",
        ),
        ("raise SystemExit(3)", "it ended with status 3"),
        (BEGINS, "left a file that it cannot read: ValueError: cannot reshape array of size 127"),
        (BEGINS + "print('one\\n\\x1b[31mtwo\\n  ', file=sys.stderr); raise SystemExit(1)", "failed: [31mtwo\n"),
    ],
)
def test_a_converter_that_fails(llama, tt, tmp_path, ttlora, converter, source, why):
    converter(source)
    outcome = ttlora("export", tt, "--output", tmp_path / "new" / "a.gguf", "--format", "gguf", "--base", llama)
    assert_one_line(outcome, "llama.cpp's converter ", why, status=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals of this kind")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_export_leaves_nothing(llama, tt, tmp_path, ttlora, converter, number, status):
    told = tmp_path / "process"
    converter(
        f"{BEGINS}open({str(told)!r}, 'w').write(str(os.getpid()))\n"
        f"os.kill(os.getppid(), {int(number)}); time.sleep(60)"
    )
    # tests that run in the background ignore SIGINT
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        outcome = ttlora("export", tt, "--output", tmp_path / "new" / "a.gguf", "--format", "gguf", "--base", llama)
    finally:
        signal.signal(number, before)
    assert (outcome.status, outcome.out, outcome.err) == (status, "", "ttlora: stopped\n")
    assert os.listdir(tmp_path) == ["process"]
    # after Ctrl-C Python kills its child, and need not have waited for it
    with suppress(ChildProcessError):
        assert os.waitstatus_to_exitcode(os.waitpid(int(told.read_text()), 0)[1]) == -signal.SIGKILL


def test_a_file_that_comes_meanwhile_is_kept(llama, tt, tmp_path, ttlora, converter):
    file = tmp_path / "a.gguf"
    converter(f"{TELLS}open({str(file)!r}, 'w').write('mine')")
    assert_one_line(ttlora("export", tt, "--output", file, "--format", "gguf", "--base", llama), "is there already")
    assert (os.listdir(tmp_path), file.read_text()) == (["a.gguf"], "mine")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no sizes of files")
def test_a_full_disk(llama, tt, tmp_path, ttlora, converter, monkeypatch):
    import resource  # Unix has it alone

    # Python would cut short the bytecode of what is imported meanwhile, and others would read it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    converter(TELLS)
    file = tmp_path / "a.gguf"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        outcome = ttlora("export", tt, "--output", file, "--format", "gguf", "--base", llama)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_one_line(outcome, f"error: {file} cannot be written to: File too large\n", status=1)
    assert not list(tmp_path.iterdir())


def test_a_damaged_adapter(llama, tt, tmp_path, ttlora, converter):
    converter(TELLS)
    copy = Path(shutil.copytree(tt, tmp_path / "copy"))
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    flags = ("--output", tmp_path / "a.gguf", "--format", "gguf", "--base", llama)
    assert_one_line(ttlora("export", copy, *flags), "is damaged or cut short")
    assert os.listdir(tmp_path) == ["copy"]
