"""Adapters of a pool act as PEFT has them act one by one, in whole batches and in mixed ones."""

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM

import ttlora
from tests.adapters.answers import of_bert, of_llama
from tests.conftest import llama_config
from ttlora import TTLoraConfig
from ttlora.adapters.pool import AdapterPool
from ttlora.adapters.weights import cast_weights
from ttlora.errors import UserError
from ttlora.tuners.tt_lora import TTLoraLayer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = torch.randint(4, 18, (4, 6), generator=torch.Generator().manual_seed(1))
# large, so that adapters change what is said
LARGE: dict[str, Any] = {"alpha": 300.0, "init_weights": False, "task_type": "CAUSAL_LM"}
RECIPES: dict[str, TTLoraConfig] = {
    "stars": of_llama(**LARGE),
    "mail": of_llama(**LARGE),
    "news": of_llama(**LARGE),
    # other recipes: ranks and scales, layers, places
    "code": of_llama(**{**LARGE, "r": 2, "alpha": 200.0}),
    "half": of_llama(**LARGE, layers_to_transform=[1]),
    "wide": TTLoraConfig(**{**LARGE, "r": 3}),
    "tokens": of_llama(**{**LARGE, "target_modules": ["embed_tokens", "v_proj"]}),
}
PLAIN = ["stars", "mail", "news"]


@pytest.fixture(scope="module")
def base(llama32: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama32).eval()


@pytest.fixture(scope="module")
def folders(base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    for name, config in RECIPES.items():
        model = get_peft_model(copy.deepcopy(base), config)
        model.save_pretrained(path / name, save_embedding_layers=False)
    return {name: path / name for name in RECIPES}


@pytest.fixture
def load(base: Any, folders: dict[str, Path]) -> Any:
    def build(*names: str) -> AdapterPool:
        return ttlora.load_many(copy.deepcopy(base), {name: folders[name] for name in names or RECIPES})

    return build


@pytest.fixture
def alone(base: Any, folders: dict[str, Path]) -> Any:
    """What a model with one adapter, loaded by PEFT, does with each row."""

    def call(names: list[str], function: Any) -> torch.Tensor:
        found = []
        for name, ids in zip(names, IDS.split(1), strict=True):
            model = copy.deepcopy(base)
            found.append(
                function(model if name == "__base__" else PeftModel.from_pretrained(model, folders[name]), ids)
            )
        return torch.cat(found)

    return call


def logits(model: Any, ids: torch.Tensor = IDS, **names: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **names).logits


def generated(model: Any, ids: torch.Tensor, beams: int = 1, **names: Any) -> torch.Tensor:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **names)


MIXTURES = [
    ["stars", "mail", "news", "stars"],
    ["mail", "mail", "stars", "stars"],
    ["news", "news", "news", "news"],
    ["__base__", "news", "stars", "__base__"],
    ["stars", "code", "half", "wide"],
    ["tokens", "__base__", "tokens", "mail"],
]


@pytest.mark.parametrize("names", MIXTURES)
def test_each_row_is_that_of_its_adapter_alone(load, alone, base, names):
    pool = load()
    found, expected = logits(pool.model, adapter_names=names), alone(names, logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for row, name in enumerate(names):
        own = logits(base, IDS[row : row + 1])
        changed = (found[row] - own[0]).norm() / own.norm()
        assert torch.equal(found[row : row + 1], logits(base)[row : row + 1]) if name == "__base__" else changed > 0.05


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("names", [MIXTURES[0], MIXTURES[3], MIXTURES[4]])
def test_generation(load, alone, names, beams):
    found = generated(load().model, IDS, beams, adapter_names=names)
    assert torch.equal(found, alone(names, partial(generated, beams=beams)))
    assert not torch.equal(found, generated(load().model, IDS, beams))


def test_a_dense_reference(load, base, folders):
    pool, names = load(*PLAIN), ["mail", "stars", "news", "mail"]
    found = logits(pool.model, adapter_names=names)
    for row, name in enumerate(names):
        adapted = PeftModel.from_pretrained(copy.deepcopy(base), folders[name])
        dense = copy.deepcopy(base)
        for path, layer in adapted.base_model.model.named_modules():
            if isinstance(layer, TTLoraLayer):
                cores = layer.cores["default"].detach().double()
                delta = layer.updates["default"].acting_train(cores).to_matrix()
                dense.get_submodule(path).weight.data += delta.float()
        torch.testing.assert_close(found[row], logits(dense)[row], rtol=1e-4, atol=1e-4)


def test_a_half_precision_model_and_files(llama, folders, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval()
    narrow = {}
    for name in PLAIN:
        narrow[name] = Path(shutil.copytree(folders[name], tmp_path / name))
        cast_weights(folders[name] / WEIGHTS, narrow[name] / WEIGHTS, torch.bfloat16)
    pool = ttlora.load_many(copy.deepcopy(half), narrow)
    assert [adapters.cores.dtype for adapters in pool.model.base_model.pooled] == [torch.bfloat16]
    names = ["mail", "__base__", "news", "stars"]
    found = logits(pool.model, adapter_names=names).float()
    for row, name in enumerate(names):
        model = copy.deepcopy(half)
        expected = logits(model if name == "__base__" else PeftModel.from_pretrained(model, narrow[name])).float()
        torch.testing.assert_close(found[row], expected[row], rtol=2e-2, atol=2e-2)
    # a wider file widens the pool: nothing is rounded
    pool.load_adapter(folders["stars"], "exact")
    assert [adapters.cores.dtype for adapters in pool.model.base_model.pooled] == [torch.float32]
    assert torch.equal(logits(pool.model, adapter_names=names).float(), found)


def test_what_it_holds_are_cores_and_nothing_else(load, folders):
    pool = load(*PLAIN)
    logits(pool.model, adapter_names=["mail", "stars", "news", "mail"])
    (adapters,) = pool.model.base_model.pooled
    parameters = sum(tensor.numel() for tensor in load_file(folders["stars"] / WEIGHTS).values())
    assert adapters.cores.shape == (3, parameters)
    assert adapters.cores.untyped_storage().nbytes() == 3 * parameters * 4
    assert not list(adapters.parameters())
    # neither is any of it saved with the model
    assert not [key for key in pool.model.state_dict() if key.endswith(".cores")]


@pytest.mark.parametrize("name", RECIPES)
def test_one_adapter_for_all_rows(load, alone, base, name):
    pool = load()
    assert torch.equal(logits(pool.model), logits(base))
    pool.set_adapter("mail")
    pool.set_adapter(name)
    assert pool.active_adapter == name
    torch.testing.assert_close(logits(pool.model), alone([name] * 4, logits), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in pool.model.parameters())
    with pool.model.disable_adapter():
        assert torch.equal(logits(pool.model), logits(base))


def test_adapters_come_and_go(load, alone, base, folders):
    pool = load("stars", "mail", "code")
    pool.load_adapter(folders["news"], "news")
    pool.load_adapter(folders["half"], "half")
    pool.delete_adapter("stars")
    assert sorted(pool.adapter_names) == ["code", "half", "mail", "news"]
    names = ["news", "half", "mail", "code"]
    torch.testing.assert_close(logits(pool.model, adapter_names=names), alone(names, logits), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="non-existing adapter\\(s\\): stars"):
        logits(pool.model, adapter_names=["stars"] * 4)
    pool.load_adapter(folders["stars"], "stars")
    names = ["stars", "half", "news", "stars"]
    torch.testing.assert_close(logits(pool.model, adapter_names=names), alone(names, logits), rtol=1e-4, atol=1e-4)
    pool.set_adapter("mail")
    pool.delete_adapter("mail")
    assert pool.active_adapter is None
    assert torch.equal(logits(pool.model), logits(base))


@pytest.mark.parametrize("other", ["news", "code", "half"])
def test_another_adapter_takes_a_name(load, alone, folders, other):
    pool = load("stars", "mail")
    pool.set_adapter("stars")
    pool.hotswap_adapter(folders[other], "stars")
    assert sorted(pool.adapter_names) == ["mail", "stars"]
    torch.testing.assert_close(logits(pool.model), alone([other] * 4, logits), rtol=1e-4, atol=1e-4)
    names = ["stars", "mail", "mail", "stars"]
    expected = alone([other if name == "stars" else name for name in names], logits)
    torch.testing.assert_close(logits(pool.model, adapter_names=names), expected, rtol=1e-4, atol=1e-4)


def test_folders_give_their_names(base, folders):
    pool = ttlora.load_many(copy.deepcopy(base), [folders["mail"], str(folders["code"])])
    assert pool.adapter_names == ["mail", "code"]


def broken(folder: Path) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-9])


def of_another_size(folder: Path) -> None:
    model = LlamaForCausalLM(llama_config(hidden_size=64, num_attention_heads=4, intermediate_size=48))
    shutil.rmtree(folder)
    get_peft_model(model, RECIPES["stars"]).save_pretrained(folder)


def lora(folder: Path) -> None:
    model = LlamaForCausalLM(llama_config(hidden_size=32, num_attention_heads=4, intermediate_size=48))
    shutil.rmtree(folder)
    get_peft_model(model, LoraConfig()).save_pretrained(folder)


def without_a_layer(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(min(tensors))
    save_file(tensors, folder / WEIGHTS)


def with_a_head(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, folder / WEIGHTS)


def from_the_pretrained_weight(folder: Path) -> None:
    model = LlamaForCausalLM(llama_config(hidden_size=32, num_attention_heads=4, intermediate_size=48))
    shutil.rmtree(folder)
    get_peft_model(model, of_llama(init_weights="dota")).save_pretrained(folder)


def at_no_layer(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(values | {"target_modules": ["nowhere"]}), "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken, "is damaged or cut short"),
        (
            of_another_size,
            "does not fit .*: .* is 32 x 32, but this adapter was made for a model in which it is 64 x 64",
        ),
        (lora, "is an adapter of LORA, and ttlora load_many takes those of TT-LoRA"),
        (without_a_layer, "does not fit .*: it has no .*ttlora_cores, which the model needs"),
        (with_a_head, "holds lm_head.weight beside its cores, and a pool takes cores alone: load it with PEFT"),
        (
            from_the_pretrained_weight,
            r"was trained with init_weights='dota', and a pool takes plain trains: `ttlora round",
        ),
        (at_no_layer, "the model has none of the modules that it adapts: nowhere"),
        (shutil.rmtree, "is not there"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_folder_that_is_refused_changes_nothing(base, folders, load, tmp_path, damage, message, place):
    bad = Path(shutil.copytree(folders["stars"], tmp_path / "bad"))
    damage(bad)
    model = copy.deepcopy(base)
    named = {"mail": folders["mail"]}
    named = {"bad": bad, **named} if place == 0 else {**named, "bad": bad}
    with pytest.raises(UserError, match=message) as refusal:
        ttlora.load_many(model, named)
    assert str(bad) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in base.named_modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    # and one that would join others
    pool = load("mail", "code")
    modules, names = [name for name, _ in pool.model.named_modules()], ["mail", "code", "__base__", "mail"]
    before = logits(pool.model, adapter_names=names)
    for refused in (partial(pool.load_adapter, bad, "new"), partial(pool.hotswap_adapter, bad, "mail")):
        with pytest.raises(UserError, match=message):
            refused()
        assert pool.adapter_names == ["mail", "code"]
        assert [name for name, _ in pool.model.named_modules()] == modules
        assert list(pool.model.peft_config) == [adapters.slot for adapters in pool.model.base_model.pooled]
        assert torch.equal(logits(pool.model, adapter_names=names), before)


def test_names_that_are_taken(base, folders, load, tmp_path):
    pool = load("mail")
    with pytest.raises(UserError, match=r"there is an adapter 'mail' already: .* for .*stars"):
        pool.load_adapter(folders["stars"], "mail")
    for name in ("__base__", pool.model.base_model.pooled[0].slot):
        with pytest.raises(UserError, match=f"`adapter_name` is '{name}'"):
            pool.load_adapter(folders["stars"], name)
    for refused in (pool.set_adapter, pool.delete_adapter, partial(pool.hotswap_adapter, folders["stars"])):
        with pytest.raises(UserError, match="there is no adapter 'other' in the pool"):
            refused("other")
    other = shutil.copytree(folders["stars"], tmp_path / "mail")
    with pytest.raises(UserError, match="there is an adapter 'mail' already"):
        ttlora.load_many(copy.deepcopy(base), [folders["mail"], other])
    with pytest.raises(UserError, match="names no adapter"):
        ttlora.load_many(copy.deepcopy(base), [])
    with pytest.raises(UserError, match="has adapters of PEFT's already"):
        ttlora.load_many(pool.model, [folders["stars"]])


def test_wrong_names_in_a_batch(load):
    pool = load("mail")
    with pytest.raises(ValueError, match="non-existing adapter\\(s\\): nobody"):
        logits(pool.model, adapter_names=["mail", "nobody", "mail", "mail"])
    with pytest.raises(ValueError, match="should be the same as the number of inputs, but got 2 and 4"):
        logits(pool.model, adapter_names=["mail", "mail"])


def test_peft_loads_adapters_beside_a_pool(load, alone, folders):
    pool = load("mail", "code")
    pool.model.load_adapter(folders["stars"], "stars")
    names = ["mail", "stars", "code", "stars"]
    torch.testing.assert_close(logits(pool.model, adapter_names=names), alone(names, logits), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="`adapter_name` is 'stars'"):
        pool.load_adapter(folders["stars"], "stars")
    pool.model.load_adapter(folders["news"], "mail")
    with pytest.raises(ValueError, match="there are two adapters 'mail'"):
        logits(pool.model, adapter_names=names)


def test_a_trained_head_is_left_to_peft(bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    get_peft_model(copy.deepcopy(model), of_bert(task_type="SEQ_CLS")).save_pretrained(tmp_path / "head")
    with pytest.raises(UserError, match=r"holds classifier\.\w+ beside its cores"):
        ttlora.load_many(model, [tmp_path / "head"])


def test_the_pool_moves_with_the_model(load):
    pool = load(*PLAIN)
    pool.model.to(torch.float64)
    assert [adapters.cores.dtype for adapters in pool.model.base_model.pooled] == [torch.float64]
    copied = copy.deepcopy(pool)
    names = ["mail", "stars", "news", "mail"]
    expected = logits(pool.model, adapter_names=names)
    pool.delete_adapter("mail")
    assert torch.equal(logits(copied.model, adapter_names=names), expected)
