from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ttlora import TTLoraConfig
from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.methods import METHODS, count_parameters, find_method
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.models.skeleton import build_skeleton

TASK = Task("file", ("text",), labels=(0, 1))
CAUSAL = Task("file", ("text",), scoring="prompt", labels=(0, 1), prompt="{text}")
IDS = torch.tensor([[2, 5, 6, 3]])
HEAD = (32 * 32 + 32) + (32 * 2 + 2)

# types of PEFT of different kinds: shared random projections, seeds, banks of vectors, wavelets, scales
OTHERS = ["vera", "tinylora", "unilora", "vblora", "waveft", "ia3", "fourierft", "randlora"]
# so that they fit a width of 32
SMALL = {
    "vblora": {"settings": "num_vectors=8 vector_length=16"},
    "waveft": {"settings": "n_frequency=50"},
    "fourierft": {"settings": "n_frequency=50"},
    "vera": {"r": 8},
}


def recipe_of(folder, method: str, **keys) -> Recipe:
    return Recipe(model=str(folder), task="file", output="o", method=method, **keys)


def adapt(folder, method: str, task: Task = TASK, **keys):
    recipe = find_method(method).complete(recipe_of(folder, method, **keys))
    base = load_base(str(folder), task, form=find_method(method).form(recipe))
    return base, find_method(method).adapt(base, recipe).model


def trained_names(model) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, weight in model.named_parameters() if weight.requires_grad}


def save(method: str, model, folder) -> None:
    """As a run does: from a checkpoint to the adapter's folder."""
    find_method(method).save(model, folder)
    for name, final_name in find_method(method).files.items():
        (folder / name).rename(folder / final_name)


def randomise(model) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)


def test_counts_of_every_method(bert):
    counts = {}
    for method in METHODS:
        base, model = adapt(bert, method)
        counts[method] = count_parameters(model, base.head)
        if isinstance(model, PeftModel):
            assert sum(counts[method]) == model.get_nb_trainable_parameters()[0]
    assert {inside for _, inside in counts.values()} == {HEAD}
    outside = {method: count for method, (count, _) in counts.items()}
    body = load_base(str(bert), TASK).model.bert
    del body.pooler
    norms = 5 * 2 * 32
    # r 8, two factors of 32, query and value of two layers
    assert outside["lora"] == 8 * (32 + 32) * 4
    # 32 x 8 as [4, 8, 8]
    assert outside["loretta-rep"] == 4 * 2 * (4 * 4 + 4 * 8 * 5 + 5 * 8) + norms
    # two layers, each with one behind attention and one behind feed-forward
    assert outside["adapter"] == 4 * (2 * 8 * 32 + 8 + 32) + norms
    assert 4 * (64 + 32) + norms < outside["loretta-adp"] < 4 * (2 * 64 * 32 + 64 + 32) + norms
    # keys and values in two layers
    assert outside["prefix"] == 8 * 2 * 2 * 32
    assert outside["prompt"] == 10 * 32
    assert outside["p-tuning"] == 20 * 32 + (32 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 32
    assert outside["bitfit"] == sum(weight.numel() for name, weight in body.named_parameters() if "bias" in name)
    assert outside["head"] == 0
    assert outside["full"] == sum(weight.numel() for weight in body.parameters())
    assert 0 < outside["tt-lora"] < outside["lora"]
    # query and value of two layers: (32 + 32) r + (2 + 2) r², and r (32 + 16 + 2 + 2 + 2)
    assert outside["meta-tt"] == 64 * 8 + 4 * 64
    assert outside["lorta"] == 8 * (32 + 16 + 2 + 2 + 2)


@pytest.mark.parametrize(
    ("method", "keys", "count"),
    [
        ("tt-lora", {"targets": "in_proj", "shape": "64,36,12,64", "r": 5}, 22_080),  # printed: 0.02M
        ("lora", {"r": 8}, 294_912),  # 0.30M
        ("lora", {"r": 4}, 147_456),  # 0.15M
        ("p-tuning", {}, 229_376),  # 0.23M
        ("prefix", {}, 147_456),  # 0.15M
        ("bitfit", {}, 102_144),  # 0.10M
        ("loretta-adp", {}, 95_808),  # 0.10M
        ("loretta-rep", {}, 54_960),  # 0.05M
        ("prompt", {}, 7_680),  # 0.01M
        ("full", {}, 138_601_728),  # 139.19M, with the head of 592,130
    ],
)
def test_counts_in_deberta_base_beside_the_printed_ones(method, keys, count):
    recipe = Recipe(model="deberta-base", task="file", output="o", method=method, **keys)
    base = Base("deberta-base", build_skeleton("deberta-base"), None, ("pooler", "classifier"))
    model = find_method(method).adapt(base, find_method(method).complete(recipe)).model
    assert count_parameters(model, base.head) == (count, 768 * 768 + 768 + 2 * 768 + 2)


def test_tt_lora_takes_shapes_ranks_and_targets(bert):
    base, model = adapt(bert, "tt-lora", shape="4,8,8,4", r="2,3,2", targets="query")
    # 1*4*2 + 2*8*3 + 3*8*2 + 2*4*1 a matrix, one matrix in each of two layers
    assert count_parameters(model, base.head)[0] == 2 * (8 + 48 + 48 + 8)
    config = model.peft_config["default"]
    assert isinstance(config, TTLoraConfig)
    assert config.target_modules == {"query"} or config.target_modules == ["query"]


def test_shapes_by_module(llama):
    base, model = adapt(llama, "tt-lora", targets="q_proj,v_proj", shape="q_proj=32,32 v_proj=16,32", r=1)
    assert count_parameters(model, base.head)[0] == 2 * (64 + 48)


def test_shapes_of_factors(bert):
    base, model = adapt(bert, "loretta-rep", shape="32=16,2,8", settings="train_layer_norms=false tt_rank=1")
    assert count_parameters(model, base.head)[0] == 4 * 2 * (16 + 2 + 8)


def test_settings_are_fields_of_the_config(bert):
    _, model = adapt(bert, "lora", settings="use_rslora=true layers_to_transform=[1]")
    assert model.peft_config["default"].use_rslora
    assert {name.split(".")[3] for name in trained_names(model) if "lora_" in name} == {"1"}
    base, model = adapt(bert, "p-tuning", settings={"num_virtual_tokens": 3})
    # the other default stays
    assert count_parameters(model, base.head)[0] == 3 * 32 + (32 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 32


def test_every_default_stands_in_the_completed_recipe():
    for method in (*METHODS, "vera"):
        recipe = find_method(method).complete(Recipe(model="m", task="t", output="o", method=method))
        assert recipe.learning_rate
        assert recipe.settings == ({**find_method(method).defaults.get("settings", {})} or None)
    assert recipe.settings == {"save_projection": False}


def test_all_linear_leaves_the_head_out(bert):
    _, model = adapt(bert, "lora", targets="all-linear")
    assert any("intermediate.dense.lora_A" in name for name in trained_names(model))
    assert not any("classifier" in name and "lora_" in name for name in trained_names(model))


class TestPoolers:
    """What pretraining has left between the body and the head."""

    def adapted(self, folder, **keys) -> Base:
        recipe = find_method("tt-lora").complete(recipe_of(folder, "tt-lora", **keys))
        return find_method("tt-lora").adapt(load_base(str(folder), TASK), recipe)

    @pytest.mark.parametrize("targets", [None, "all-linear", "query"])
    def test_move_by_a_train(self, targets, bert, tmp_path):
        base = self.adapted(bert, head="train", targets=targets)
        assert base.head == ("classifier",)
        dense = self.adapted(bert, targets=targets)
        assert dense.head == ("classifier", "bert.pooler")
        more = {name for name in trained_names(base.model) - trained_names(dense.model) if "pooler" in name}
        assert more == {"bert.pooler.dense.ttlora_cores.default"}
        adapter, head = count_parameters(base.model, base.head)
        assert head == 32 * 2 + 2
        assert (
            adapter
            == count_parameters(dense.model, dense.head)[0]
            + base.model.get_submodule("base_model.model.bert.pooler.dense").ttlora_cores["default"].numel()
        )

    def test_come_back_in_plain_peft(self, bert, tmp_path):
        base = self.adapted(bert, head="train")
        randomise(base.model)
        save("tt-lora", base.model, tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2), tmp_path / "adapter"
        )
        torch.testing.assert_close(loaded.eval()(IDS).logits, base.model.eval()(IDS).logits)
        again = find_method("tt-lora").load(recipe_of(bert, "tt-lora", head="train"), TASK, tmp_path / "adapter")
        assert again.head == ("classifier",)
        torch.testing.assert_close(again.model.eval()(IDS).logits, base.model.eval()(IDS).logits)

    def test_a_model_without(self, llama):
        assert trained_names(self.adapted(llama, head="train").model) == trained_names(self.adapted(llama).model)

    def test_other_methods_train_them_whole(self, bert):
        with pytest.raises(UserError, match="`head` means nothing to method lora: leave it out"):
            adapt(bert, "lora", head="train")


def test_bitfit_trains_biases_and_the_head(bert):
    _, model = adapt(bert, "bitfit")
    names = trained_names(model)
    dense = {"classifier.weight", "bert.pooler.dense.weight"}
    assert names == {name for name, _ in model.named_parameters() if name.endswith("bias")} | dense


def test_what_trains_is_float32_on_a_half_precision_base(llama):
    for method in ("tt-lora", "loretta-rep", "loretta-adp", "meta-tt", "lorta", "lora", "prefix", "p-tuning", "head"):
        _, model = adapt(llama, method)
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
        assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "base_name"),
    [(method, "bert") for method in (*METHODS, *OTHERS)]
    + [(method, "llama") for method in (*METHODS, "vera") if method != "bitfit"],
)
def test_saved_weights_come_back_bit_for_bit(method, base_name, request, tmp_path):
    folder = request.getfixturevalue(base_name)
    _, model = adapt(folder, method, **SMALL.get(method, {}))
    randomise(model)
    save(method, model, tmp_path)
    loaded = find_method(method).load(recipe_of(folder, method), TASK, tmp_path)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=base_name == "llama"):
        got, expected = loaded.model.eval()(IDS).logits, model.eval()(IDS).logits
    if (method, base_name) == ("p-tuning", "llama"):
        # saved is the prompt in float32, and not as autocast computes it
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    else:
        assert torch.equal(got, expected)
    assert count_parameters(loaded.model, loaded.head) == count_parameters(model, loaded.head)
    assert count_parameters(model, loaded.head)[1] == (HEAD if base_name == "bert" else 64)


@pytest.mark.parametrize(
    "method", ["tt-lora", "meta-tt", "lorta", "loretta-rep", "lora", "prompt", "prefix", "p-tuning", "vera"]
)
def test_a_causal_model_has_no_head(method, llama, tmp_path):
    base, model = adapt(llama, method, CAUSAL, **SMALL.get(method, {}))
    assert base.head == ()
    assert count_parameters(model, base.head) == (model.get_nb_trainable_parameters()[0], 0)
    assert not any("modules_to_save" in name and "norm" not in name for name in trained_names(model))
    randomise(model)
    save(method, model, tmp_path)
    loaded = find_method(method).load(recipe_of(llama, method), CAUSAL, tmp_path)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = loaded.model.eval()(IDS).logits, model.eval()(IDS).logits
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "method", ["tt-lora", "loretta-rep", "loretta-adp", "meta-tt", "lorta", "lora", "prompt", "p-tuning", "prefix"]
)
def test_plain_peft_loads_what_was_saved(method, bert, tmp_path):
    _, model = adapt(bert, method)
    randomise(model)
    save(method, model, tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(bert), tmp_path)
    with torch.no_grad():
        assert torch.equal(plain.eval()(IDS).logits, model.eval()(IDS).logits)


def test_full_is_a_plain_transformers_model(bert, tmp_path):
    _, model = adapt(bert, "full")
    find_method("full").save(model, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(plain.eval()(IDS).logits, model.eval()(IDS).logits)


class TestPrompts:
    @pytest.mark.parametrize(
        ("method", "settings"),
        [("p-tuning", None), ("prompt", None), ("prefix", None), ("prefix", "prefix_projection=true")],
    )
    def test_training_goes_on_with_the_network_that_makes_the_prompt(self, method, settings, bert, tmp_path):
        _, model = adapt(bert, method, settings=settings)
        randomise(model)
        find_method(method).save(model, tmp_path)
        _, other = adapt(bert, method, settings=settings)
        other.load_adapter(tmp_path, "default", is_trainable=True)  # as Trainer does
        expected = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        got = {name: weight for name, weight in other.named_parameters() if weight.requires_grad}
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)

    def test_a_projected_prefix_is_loaded_and_counted(self, bert, tmp_path):
        base, model = adapt(bert, "prefix", settings="prefix_projection=true encoder_hidden_size=16")
        randomise(model)
        save("prefix", model, tmp_path)
        loaded = find_method("prefix").load(recipe_of(bert, "prefix"), TASK, tmp_path)
        assert count_parameters(loaded.model, base.head) == count_parameters(model, base.head)
        with torch.no_grad():
            torch.testing.assert_close(loaded.model.eval()(IDS).logits, model.eval()(IDS).logits)

    @pytest.mark.parametrize(("method", "tokens"), [("prompt", 10), ("p-tuning", 20), ("prefix", 8), ("lora", 0)])
    def test_they_take_places_of_a_row(self, method, tokens, bert, tmp_path):
        base, model = adapt(bert, method)
        assert replace(base, model=model).virtual_tokens == tokens
        save(method, model, tmp_path)
        loaded = find_method(method).load(recipe_of(bert, method), TASK, tmp_path)
        # the model has 40 places
        assert loaded.longest_input(128) == 40 - tokens
        ids = torch.full((1, 40 - tokens), 5)
        assert loaded.model(ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()

    def test_a_prompt_longer_than_the_model(self, bert):
        with pytest.raises(
            UserError, match=r"num_virtual_tokens in `settings` is 40, and model .* takes 40 tokens with the row's own"
        ):
            adapt(bert, "prompt", settings="num_virtual_tokens=40")

    @pytest.fixture
    def save_base(self, bert, tmp_path):
        """Saves a model with the tokenizer of the tiny BERT."""

        def save_base(model):
            model.save_pretrained(tmp_path)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (tmp_path / file).write_bytes((bert / file).read_bytes())
            return tmp_path

        return save_base

    def test_keys_and_values_for_a_model_that_takes_none(self, save_base):
        config = MPNetConfig(
            vocab_size=24, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
        )
        folder = save_base(MPNetModel(config))
        with pytest.raises(UserError, match="models of type mpnet do not take: use prompt or p-tuning"):
            adapt(folder, "prefix")
        _, model = adapt(folder, "prompt")
        assert model(IDS).logits.isfinite().all()

    def test_an_encoder_with_a_decoder(self, save_base):
        config = T5Config(vocab_size=24, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
        folder = save_base(T5ForConditionalGeneration(config))
        with pytest.raises(UserError, match="method prompt does not fit models of an encoder and a decoder"):
            adapt(folder, "prompt")


@pytest.mark.parametrize(
    ("method", "keys", "complaint"),
    [
        ("tt-lora", {"shape": "16,16,16"}, "has the product 4,096, but the 32 x 32 matrix has 1,024 entries"),
        (
            "tt-lora",
            {"targets": "q_proj"},
            "'q_proj' is no module of the model; its linear modules are query, key, value, dense$",
        ),
        ("lora", {"targets": "query,valu"}, "'valu' is no module"),
        ("lora", {"targets": "dropout"}, "method lora does not fit model"),
        ("lora", {"r": "4,4"}, r"`r` is \[4, 4\]: method lora takes one rank"),
        ("lora", {"shape": "8,8"}, "`shape` means nothing to method lora"),
        ("lora", {"settings": "lora_alpha=4"}, "`settings` names lora_alpha, which has a key of its own: use `alpha`"),
        ("lora", {"settings": "target_modules=x"}, "names target_modules, which has a key of its own: use `targets`"),
        ("lora", {"settings": "modules_to_save=x"}, "names 'modules_to_save', which is no setting of method lora"),
        (
            "lora",
            {"settings": "use_rslra=true"},
            "'use_rslra', which is no setting of method lora: did you mean use_rs",
        ),
        ("lora", {"settings": "rank_pattern=5"}, "method lora does not fit model"),
        ("prompt", {"targets": "query"}, "`targets` means nothing to method prompt"),
        ("prompt", {"settings": "num_virtual_tokens=-1"}, "method prompt does not fit model"),
        ("adapter", {"settings": "non_linearity=cosine"}, "non_linearity='cosine' is not one of"),
        ("loretta-rep", {"shape": "8,8"}, r"shape=\[8, 8\] is not 'auto' or a dict of dims"),
        ("loretta-rep", {"r": 33}, "r=33 is more than the rank of its 32 x 32 weight"),
        ("vera", {"alpha": 3}, "`alpha` means nothing to method vera: leave it out"),
        ("vblora", {}, "method vblora does not fit model .*vector_length"),
        ("ln-tuning", {}, "Please specify `target_modules` in `peft_config`; name them with `targets`"),
        ("bitfit", {"settings": "r=1"}, "`settings` means nothing to method bitfit"),
        ("head", {"r": 3}, "`r` means nothing to method head"),
        ("full", {"targets": "query"}, "`targets` means nothing to method full"),
    ],
)
def test_recipe_that_does_not_fit_is_refused(method, keys, complaint, bert):
    with pytest.raises(UserError, match=complaint) as error:
        adapt(bert, method, **keys)
    assert "\n" not in str(error.value)


def test_models_that_do_not_fit(llama):
    with pytest.raises(UserError, match=r"method bitfit trains biases, and .*llama has none: use another method"):
        adapt(llama, "bitfit")
    with pytest.raises(UserError, match=r"method head trains a head, and .*llama has none for this task"):
        adapt(llama, "head", CAUSAL)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ttlora", "no method is called 'ttlora': did you mean tt-lora"),
        ("p_tuning", "no method is called 'p_tuning': did you mean p-tuning"),
        ("tlora", r"did you mean tt-lora\?$"),
        ("veraa", r"did you mean vera\?$"),
        ("zzz", "no method is called 'zzz': there are tt-lora, .*, full, and of PEFT .*tinylora"),
        ("xlora", "method xlora of PEFT cannot be used here: it mixes LoRA adapters"),
        ("adaption-prompt", "method adaption-prompt of PEFT cannot be used here"),
        ("adalora", "method adalora of PEFT cannot be used here: it decides its ranks in the loop of a training"),
    ],
)
def test_unknown_method_is_refused_with_a_suggestion(name, complaint):
    with pytest.raises(UserError, match=complaint):
        find_method(name)
