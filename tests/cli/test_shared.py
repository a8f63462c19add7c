"""The commands with MetaTT and LoRTA, whose parameters serve many layers at once."""

import json
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ttlora import LortaConfig, MetaTTConfig
from ttlora.planner.plan import plan
from ttlora.tuners.shared.layer import SharedLinear

TOKENS = torch.arange(4, 20).reshape(2, 8)
OPTIONS = {"r": 5, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_weights": False}
CONFIGS = {
    "meta-tt": MetaTTConfig(**OPTIONS),
    "factored": MetaTTConfig(**OPTIONS, shape="auto"),
    "lotr": MetaTTConfig(**OPTIONS, joint=True),
    "lorta": LortaConfig(**OPTIONS),
}


def load(llama, folder=None):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    return model if folder is None else PeftModel.from_pretrained(model, folder)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


@pytest.fixture(scope="module")
def folders(llama, tmp_path_factory):
    """An adapter of each kind; not to be changed."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        get_peft_model(load(llama), config).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(params=CONFIGS)
def adapter(folders, request):
    return folders[request.param]


def deltas_of(model):
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default")
        for name, layer in model.named_modules()
        if isinstance(layer, SharedLinear)
    }


def test_export_has_exactly_the_same_update(adapter, llama, tmp_path, ttlora):
    outcome = ttlora("export", adapter, "--output", tmp_path / "lora")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("LoRA of rank 5 for 4 modules, ")
    wanted = logits(load(llama, adapter))
    assert (logits(load(llama)) - wanted).abs().max() > 0.01 * wanted.abs().max()
    lora = load(llama, tmp_path / "lora")
    assert lora.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(lora), wanted, rtol=1e-4, atol=1e-4)


def test_merge(adapter, llama, tmp_path, ttlora):
    outcome = ttlora("merge", adapter, "--model", llama, "--output", tmp_path / "merged")
    assert (outcome.status, outcome.err) == (0, "")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(load(llama, adapter)), rtol=0.02, atol=0.02)


def test_inspect(adapter, llama, ttlora):
    outcome = ttlora("inspect", adapter, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    report = json.loads(outcome.out)
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert report["adapter_parameters"] == sum(map(torch.Tensor.numel, tensors.values()))
    assert report["method"] == ("lorta" if adapter.name == "lorta" else "meta-tt")
    deltas = deltas_of(load(llama, adapter))
    found = {name: module for module in report["modules"] for name in (module["name"], *module["others"])}
    assert found.keys() == deltas.keys()
    for module in report["modules"]:
        norms = [deltas[name].norm().item() for name in (module["name"], *module["others"])]
        assert module["norm"] == pytest.approx(math.hypot(*norms), rel=1e-5)
    table = ttlora("inspect", adapter).out
    assert "0.self_attn.q_proj and " in table


def test_inspect_of_what_is_not_finite(adapter, tmp_path, ttlora):
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for tensor in tensors.values():
        tensor[-1] = torch.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    report = json.loads(ttlora("inspect", tmp_path, "--json").out)
    assert {module["norm"] for module in report["modules"]} == {None}


@pytest.mark.parametrize("kind", ["meta-tt", "factored", "lotr"])
def test_a_sweep_over_the_ranks_of_a_saved_adapter(kind, folders, llama, tmp_path, ttlora):
    before = deltas_of(load(llama, folders[kind]))
    for flag, value in (("--r", 2), ("--tolerance", 0.6), ("--parameters", 500)):
        outcome = ttlora("round", folders[kind], "--output", tmp_path / flag, flag, value, "--json")
        assert (outcome.status, outcome.err) == (0, "")
        result = json.loads(outcome.out)
        assert result["parameters"] < result["parameters_before"]
        inspected = json.loads(ttlora("inspect", tmp_path / flag, "--json").out)
        assert [m["ranks"] for m in inspected["modules"]] == [m["ranks"] for m in result["modules"]]
        after = deltas_of(load(llama, tmp_path / flag))
        error = math.hypot(*((after[name] - before[name]).norm().item() for name in before))
        norm = math.hypot(*(delta.norm().item() for delta in before.values()))
        assert error / norm == pytest.approx(result["relative_error"], rel=1e-3)
        if flag == "--r":
            assert all(max(module["ranks"]) == 2 for module in result["modules"])
        elif flag == "--parameters":
            assert result["parameters"] <= 500
        else:
            assert all(module["relative_error"] <= 0.6 for module in result["modules"])


def test_what_cannot_be_rounded(folders, tmp_path, ttlora):
    for name, part in (("lorta", "LORTA, and ttlora round takes those of TT-LoRA"), ("lotr", "there is nothing to")):
        outcome = ttlora("round", folders[name], "--output", tmp_path / "out", "--r", 9)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert part in outcome.err


class TestPlan:
    @pytest.mark.parametrize(
        ("model", "method", "r", "targets", "expected"),
        [
            # 2 d r + (L + M) r²
            ("roberta-base", "meta-tt", 8, None, 2 * 768 * 8 + (12 + 2) * 64),
            ("llama2-7b", "meta-tt", 8, None, 2 * 4096 * 8 + (32 + 2) * 64),
            # r (d + d / h + h + L + 4)
            ("roberta-base", "lorta", 1, "query,key,value,attention.output.dense", 860),
            ("llama2-7b", "lorta", 4, "q_proj,k_proj,v_proj,o_proj", 4 * 4292),
        ],
    )
    def test_the_papers_formulas(self, model, method, r, targets, expected, ttlora):
        arguments = ["--targets", targets] if targets else []
        outcome = ttlora("plan", "--model", model, "--method", method, "--r", r, *arguments, "--json")
        assert outcome.status == 0
        report = json.loads(outcome.out)
        assert (report["adapter_parameters"], report["method"]) == (expected, method)
        assert (
            report["lora_r8_parameters"]
            == json.loads(
                ttlora("plan", "--model", model, "--targets", targets or _query_and_value(model), "--json").out
            )["lora_r8_parameters"]
        )

    @pytest.mark.parametrize("method", ["meta-tt", "lorta"])
    @pytest.mark.parametrize("targets", [None, "all-linear"])
    def test_it_is_what_the_adapter_has(self, method, targets, llama):
        config = {"meta-tt": MetaTTConfig, "lorta": LortaConfig}[method]
        options = {} if targets is None else {"target_modules": targets}
        model = get_peft_model(load(llama), config(r=3, **options))
        planned = plan(str(llama), r=3, targets=targets, method=method)
        assert planned.adapter_parameters == model.get_nb_trainable_parameters()[0]
        assert all(matrix.name.endswith("_proj of 2 layers") for matrix in planned.matrices)

    def test_a_table_and_memory(self, llama, ttlora):
        outcome = ttlora("plan", "--model", llama, "--method", "meta-tt", "--shape", "auto", "--memory", "1GB")
        assert outcome.status == 0
        assert outcome.out.startswith("MetaTT for ")
        assert "which fits into 1,000 MB" in outcome.out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--method", "lorta", "--shape", "auto"], "--shape means nothing to --method lorta: leave it out"),
            (["--method", "lorta", "--budget", "1KB"], "--budget goes with --method tt-lora alone"),
            (["--method", "meta-tt", "--shape", "32=5,5"], "shape [5, 5] has the product 25, and not 32"),
            (["--method", "meta-tt", "--shape", "32,5"], "shape=[32, 5] is not 'auto', a dict of dims or None"),
            (["--method", "vera"], "--method is 'vera', and has to be tt-lora or meta-tt or lorta"),
            (["--method", "lorta", "--targets", "nothing"], "'nothing' is no module of the model"),
        ],
    )
    def test_wrong_use(self, arguments, message, llama, ttlora):
        outcome = ttlora("plan", "--model", llama, *arguments)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert message in outcome.err


def _query_and_value(model):
    return "q_proj,v_proj" if "llama" in model else "query,value"


@pytest.mark.parametrize("method", ["meta-tt", "lorta"])
def test_wrong_use_of_train(method, bert, data, tmp_path, ttlora):
    wrong = {
        "meta-tt": (["--shape", "32=5,5"], "shape [5, 5] has the product 25, and not 32"),
        "lorta": (["--shape", "auto"], "--shape means nothing to method lorta: leave it out"),
    }[method]
    common = ["--model", bert, "--data", data, "--task", "glue/sst2", "--output", tmp_path / "out", "--method", method]
    for arguments, message in (wrong, (["--r", "2,3"], f"--r is [2, 3]: method {method} takes one rank")):
        outcome = ttlora("train", *common, *arguments)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1)
        assert message in outcome.err
