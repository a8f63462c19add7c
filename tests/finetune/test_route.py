"""The router of a mixture: which expert it chooses, and that each row gets its expert's own answer."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

import ttlora
from tests.conftest import BAD, GOOD, make_tokenizer, sentiment_rows, write_jsonl
from ttlora.errors import UserError
from ttlora.finetune.data import Split
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.routed import RoutedExperts, _judged
from ttlora.finetune.router import ROWS_A_STEP, Router, columns_read, texts_of
from ttlora.finetune.tasks import Task
from ttlora.values import shown


def length_rows(count, seed):
    """Sentences without a mood, in the column of those with one: how long they are."""
    chance = random.Random(seed)
    lengths = chance.choices(range(2, 12), k=count)
    return [{"sentence": " ".join(["unheard"] * length), "label": length / 4} for length in lengths]


def pair_rows(count, seed):
    """Pairs of words of three kinds, told in words."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("both", "one", "none")[number % 3]
        kinds = {"both": (GOOD, GOOD), "one": (GOOD, BAD), "none": (BAD, BAD)}[label]
        first, second = (" ".join(["it", chance.choice(kind), "people"]) for kind in kinds)
        rows.append({"first": first, "second": second, "label": label})
    return rows


def choice_rows(count, seed):
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        good, bad = f"about {chance.choice(GOOD)}", f"about house {chance.choice(BAD)}"
        label = number % 2
        rows.append({"premise": "the story", "a": (good, bad)[label], "b": (bad, good)[label], "right": label})
    return rows


KEYS = {
    "mood": {"text_column": "sentence"},
    "length": {"text_column": "sentence", "label_kind": "regression"},
    "pair": {"text_column": "first", "text_pair_column": "second"},
    "choice": {
        "text_column": "premise",
        "choice_columns": ["a", "b"],
        "label_kind": "choice",
        "label_column": "right",
    },
}
ROWS = {"mood": sentiment_rows, "length": length_rows, "pair": pair_rows, "choice": choice_rows}


def fit(model, folder, name, output, **keys):
    for split, count, seed in (("train", 48, 1), ("validation", 24, 2)):
        if not (folder / f"{name}-{split}.jsonl").exists():
            write_jsonl(folder / f"{name}-{split}.jsonl", ROWS[name](count, seed))
    files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "validation")}
    recipe = {"model": str(model), "task": "file", "output": str(output), "epochs": 1, "batch_size": 8, "threads": 1}
    ttlora.train(Recipe(**{**recipe, "learning_rate": 0.02, **files, **KEYS[name], **keys}), quiet=True)
    return output


@pytest.fixture(scope="module")
def runs(bert, tmp_path_factory):
    """A run of each task; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: fit(bert, folder, name, folder / name) for name in KEYS}


@pytest.fixture(scope="module")
def routed(runs, tmp_path_factory):
    """A router over three of them, and the folder that holds it; not to be changed."""
    folder = tmp_path_factory.mktemp("routed") / "router"
    return ttlora.route([runs[name] for name in ("mood", "length", "pair")], folder), folder


@pytest.fixture
def router(routed, tmp_path):
    """A copy of the router's folder."""
    return shutil.copytree(routed[1], tmp_path / "router")


def test_finds_experts_by_text_alone(routed):
    result, _ = routed
    assert [expert.name for expert in result.experts] == ["mood", "length", "pair"]
    for name, found in result.found.items():
        assert found.rows == 24
        assert found.found >= 0.9, name
        assert found.by_text >= 0.9, name
    # the columns of a pair are no other expert's
    assert result.found["pair"].found == 1


def test_has_twice_the_features_for_each_expert(routed):
    result, folder = routed
    assert result.parameters == 2 * 64 * 3
    tensors = load_file(folder / "router.safetensors")
    assert tensors["weight"].numel() + tensors["noise"].numel() == result.parameters
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())


def test_experts_are_copied_and_not_trained(routed, runs):
    _, folder = routed
    for name in ("mood", "length", "pair"):
        for file in ("recipe.yaml", "result.json", "adapter/adapter_model.safetensors", "adapter/task.json"):
            assert (folder / "experts" / name / file).read_bytes() == (runs[name] / file).read_bytes()
        assert not (folder / "experts" / name / "log.jsonl").exists()
    assert ttlora.evaluate(folder / "experts" / "mood").metrics == ttlora.evaluate(runs["mood"]).metrics


def test_one_mixed_batch_gives_what_each_expert_alone_gives(runs, tmp_path):
    """Classes, a number, classes of another count, choices: heads of different widths, in batches of eight."""
    ttlora.route(runs.values(), tmp_path / "router")
    rows = []
    for name in KEYS:
        rows += [{k: v for k, v in row.items() if k not in ("label", "right")} for row in ROWS[name](6, seed=3)]
    random.Random(0).shuffle(rows)
    predicted = ttlora.predict(tmp_path / "router", rows)
    assert {row["expert"] for row in predicted} == set(KEYS)
    for name in KEYS:
        its = [row for row in predicted if row["expert"] == name]
        asked = [{key: row[key] for key in row if key not in ("expert", "prediction", "probabilities")} for row in its]
        for row, alone in zip(its, ttlora.predict(runs[name], asked), strict=True):
            if name == "length":
                assert row["prediction"] == pytest.approx(alone["prediction"], abs=1e-5)
            else:
                assert row["prediction"] == alone["prediction"]
                assert row["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_a_row_does_not_depend_on_its_batch(routed):
    loaded = RoutedExperts.load(routed[1])
    rows = [{key: row[key] for key in row if key != "label"} for row in [*pair_rows(5, 7), *length_rows(5, 7)]]
    together = loaded.predict(rows)
    for row, expected in zip(rows, together, strict=True):
        [alone] = loaded.predict([row])
        assert alone["expert"] == expected["expert"]
        if "probabilities" in alone:
            assert alone["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        else:
            assert alone["prediction"] == pytest.approx(expected["prediction"], abs=1e-5)


def test_evaluation_is_the_told_experts_where_all_rows_are_found(runs, tmp_path):
    """Those two share no column, so that every row is found."""
    ttlora.route([runs["pair"], runs["choice"]], tmp_path / "router", rows=7)
    for task in RoutedExperts.load(tmp_path / "router").evaluate():
        assert (task.found.rows, task.found.found) == (24, 1)
        assert task.metrics == pytest.approx(task.told)
        assert task.told == FinishedRun.load(runs[task.expert]).record.metrics


def test_adding_an_expert_trains_the_router_alone(routed, runs, tmp_path):
    before, folder = routed
    result = ttlora.route([folder, runs["choice"]], tmp_path / "more")
    assert [expert.name for expert in result.experts] == ["mood", "length", "pair", "choice"]
    assert result.before == before.found
    assert result.found.keys() == {*before.found, "choice"}
    assert result.parameters == 2 * 64 * 4
    for name in before.found:
        file = f"experts/{name}/adapter/adapter_model.safetensors"
        assert (tmp_path / "more" / file).read_bytes() == (folder / file).read_bytes()


def test_the_same_seed_gives_the_same_router(routed, runs, tmp_path):
    experts = [runs[name] for name in ("mood", "length", "pair")]
    for name, seed in (("same", 0), ("other", 1)):
        ttlora.route(experts, tmp_path / name, seed=seed)
    first, same, other = (
        load_file(folder / "router.safetensors")["weight"]
        for folder in (routed[1], tmp_path / "same", tmp_path / "other")
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_lora_experts(bert, runs, tmp_path):
    folder = runs["mood"].parent
    experts = [fit(bert, folder, name, tmp_path / name, method="lora") for name in ("mood", "pair")]
    ttlora.route(experts, tmp_path / "router", rows=16)
    for task in RoutedExperts.load(tmp_path / "router").evaluate():
        assert task.found.found == 1
        assert task.metrics == pytest.approx(task.told)
    with pytest.raises(UserError, match=r"has method .tt-lora., and .* .lora.: experts of a mixture share"):
        ttlora.route([experts[0], runs["pair"]], tmp_path / "mixed")


def test_experts_that_answer_with_words(llama, runs, tmp_path):
    """Prompts of different tasks, and of one task's choices, whose answers differ in their number."""
    folder = runs["mood"].parent
    keys = {"scoring": "prompt", "method": "tt-lora"}
    experts = [fit(llama, folder, name, tmp_path / name, **keys) for name in ("mood", "choice")]
    ttlora.route(experts, tmp_path / "router", rows=16)
    routed = RoutedExperts.load(tmp_path / "router")
    for task in routed.evaluate():
        assert task.found.found == 1
        assert task.metrics == pytest.approx(task.told)
    rows = [{"sentence": "the film was great"}, {"premise": "the story", "a": "about house", "b": "dull"}]
    for row, run, found in zip(rows, experts, routed.predict(rows), strict=True):
        [alone] = ttlora.predict(run, [row])
        assert found["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-3)


def test_experts_of_a_language_model_with_heads(llama, runs, tmp_path):
    """In bfloat16, their heads without a pooler."""
    experts = [fit(llama, runs["mood"].parent, name, tmp_path / name) for name in ("mood", "length", "pair")]
    ttlora.route(experts, tmp_path / "router", rows=16)
    for task in RoutedExperts.load(tmp_path / "router").evaluate():
        if task.found.found == 1:
            assert task.metrics == pytest.approx(task.told, abs=0.05)
    assert task.found.found == 1


def t5():
    sizes = {"vocab_size": 24, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, eos_token_id=3))


def opt():
    """Its last layer's hidden states are narrower than the others."""
    sizes = {"vocab_size": 24, "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 48}
    return OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, eos_token_id=3))


def fit_on(make, runs, folder, targets=None, names=("mood", "pair")):
    """Runs of a base of another architecture."""
    torch.manual_seed(0)
    make().save_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder / "model")
    return [fit(folder / "model", runs["mood"].parent, name, folder / name, targets=targets) for name in names]


@pytest.mark.parametrize(
    ("make", "targets", "names"), [(t5, None, ("mood", "length")), (opt, "q_proj", ("mood", "pair"))]
)
def test_other_architectures(make, targets, names, runs, tmp_path):
    ttlora.route(fit_on(make, runs, tmp_path, targets, names), tmp_path / "router", rows=16)
    for task in RoutedExperts.load(tmp_path / "router").evaluate():
        assert task.found.found == 1
        assert task.metrics == pytest.approx(task.told)


@pytest.mark.parametrize(
    ("make", "targets", "reason"),
    [
        # it puts the tokens of all rows into one column before its feed-forward layers
        (opt, "fc1", "Length of `adapter_names`"),
        # its head asks for as many separators in every row
        (t5, None, "the same number of <eos> tokens"),
    ],
)
def test_experts_whose_rows_the_model_does_not_mix(make, targets, reason, runs, tmp_path):
    experts = fit_on(make, runs, tmp_path, targets)
    with pytest.raises(UserError, match=f"cannot answer rows of these experts in one batch: .*{reason}.*`targets`"):
        ttlora.route(experts, tmp_path / "router", rows=16)
    assert not (tmp_path / "router").exists()


def test_router_sees_the_mean_of_the_middle_layer_and_the_last_token_of_the_last(bert, routed):
    """Of rows of several lengths, and as the base computes them without adapters."""
    loaded = RoutedExperts.load(routed[1])
    texts = [("the film was great",), ("a story",), ("the house", "its people and the film")]
    seen = loaded.sight.states(texts, ["row"] * 3)
    model, tokenizer = AutoModel.from_pretrained(bert), AutoTokenizer.from_pretrained(bert)
    for row, text in zip(seen, texts, strict=True):
        with torch.no_grad():
            layers = model(**tokenizer(*text, return_tensors="pt"), output_hidden_states=True).hidden_states
        expected = torch.cat([layers[len(layers) // 2][0].mean(0), layers[-1][0, -1]])
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


# the gate


def test_gate_learns_what_a_plane_divides():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(3).repeat(100)
    centres = 5 + 3 * torch.randn(3, 8, generator=generator)
    states = centres[numbers] + 0.3 * torch.randn(300, 8, generator=generator)
    gate = Router.train(states, numbers, 3, seed=0)
    assert (gate.choose(states) == numbers).float().mean() > 0.99
    expected = ((states - states.mean(0)) / states.std(0, correction=0)) @ gate.weight.T
    assert torch.equal(gate.choose(states), expected.argmax(-1))
    # an expert that cannot read a row is not chosen, however large its logit
    able = torch.ones(300, 3, dtype=torch.bool)
    able[:, 1] = False
    assert torch.equal(gate.choose(states, able), expected[:, [0, 2]].argmax(-1) * 2)


def test_first_step_of_the_gate_is_noisy_cross_entropy(monkeypatch):
    """W and V begin at zero, where the noise has the deviation ln 2; Adam's first step is the gradient's sign."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.arange(ROWS_A_STEP) % 2
    states = torch.randn(ROWS_A_STEP, 4, generator=generator)
    monkeypatch.setattr("ttlora.finetune.router.EPOCHS", 1)
    gate = Router.train(states, numbers, 2, seed=5)
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(ROWS_A_STEP, generator=generator)
    inputs = ((states - states.mean(0)) / states.std(0, correction=0))[order]
    noise = torch.randn(ROWS_A_STEP, 2, generator=generator)
    logits = noise * torch.log(torch.tensor(2.0))
    error = logits.softmax(-1) - torch.eye(2)[numbers[order]]
    assert torch.allclose(gate.weight, -1e-3 * (error.T @ inputs).sign(), atol=1e-6)
    assert torch.allclose(gate.noise, -1e-3 * ((error * noise).T @ inputs).sign(), atol=1e-6)


def test_gate_is_read_as_it_was_written(tmp_path):
    gate = Router(torch.randn(2, 3), torch.randn(2, 3), torch.randn(3), torch.rand(3) + 1)
    gate.write(tmp_path / "gate.safetensors")
    found = Router.read(tmp_path / "gate.safetensors", 2, 3)
    assert all(torch.equal(getattr(gate, name), value) for name, value in vars(found).items())


def test_texts_come_in_the_order_of_the_experts():
    tasks = [Task("one", ("premise", "{word}: hypothesis {text}")), Task("two", ("text",), choices=("a", "b"))]
    columns = columns_read(tasks)
    assert columns == ["premise", "word", "text", "a", "b"]
    row = {"label": "yes", "b": "B", "text": 7, "premise": "P", "a": None}
    assert texts_of(row, columns, "row 1") == ("P", "7 B")
    assert texts_of({"b": ["x", "y"], "label": 1}, columns, "row 1") == ("x y",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"other": "x"}, "row 1 has none of the columns that the experts read: a"),
        ({"a": "\ud83d"}, "row 1: column 'a' holds \\ud83d, which is half a character: mend the text"),
    ],
)
def test_texts_that_cannot_be_used(row, message):
    with pytest.raises(UserError) as caught:
        texts_of(row, ["a"], "row 1")
    assert str(caught.value) == message


def test_what_a_wrong_expert_says_counts_if_it_is_an_answer():
    classes = Task("classes", ("a",), labels=(0, 1, 2))
    others = Task("others", ("b",), labels=("1", "x"))
    number = Task("number", ("c",), kind="regression")
    choice = Task("choice", ("d",), kind="choice", choices=("e", "f"), labels=("e", "f"))
    split = Split([], [0.0, 2.5, 5.0], [])
    first, second = torch.tensor([0.9, 0.1]).numpy(), torch.tensor([0.1, 0.9]).numpy()
    assert _judged(others, classes, ("",), first, 2, split) == 1
    assert _judged(others, classes, ("",), second, 2, split) == 0
    assert _judged(number, classes, ("",), first, 0, split) == 1
    assert _judged(classes, choice, ("",), first, 1, split) == 0
    assert _judged(classes, number, ("",), first, 2.0, split) == 5.0
    assert _judged(classes, number, ("",), first, 4.0, split) == 0.0
    assert _judged(number, number, ("",), first, 4.0, split) == pytest.approx(0.9)


# wrong use


def test_experts_that_do_not_go_together(bert, runs, tmp_path):
    other = tmp_path / "other-base"
    shutil.copytree(bert, other)
    stray = fit(other, runs["mood"].parent, "pair", tmp_path / "stray")
    copy = shutil.copytree(runs["mood"], tmp_path / "copy")
    (tmp_path / "deep").mkdir()
    twin = fit(bert, runs["mood"].parent, "mood", tmp_path / "deep" / "mood", seed=1)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").write_text("")
    out = tmp_path / "out"
    for experts, output, message in (
        ([], out, "`experts`: a router chooses among experts: name two or more"),
        ([runs["mood"]], out, "`experts`: a router chooses among experts: name two or more"),
        ([runs["mood"], runs["mood"]], out, f"expert {runs['mood']} is there twice"),
        ([runs["mood"], copy], out, f"expert {runs['mood']} is there twice: {copy} holds the same adapter"),
        ([runs["mood"], twin], out, "would both be called 'mood': rename one of the folders"),
        ([runs["mood"], stray], out, f"has model {shown(str(other))}, and {runs['mood']} {shown(str(bert))}: experts"),
        ([runs["mood"], tmp_path / "gone"], out, f"{tmp_path / 'gone'} is not there"),
        ([runs["mood"], runs["pair"]], tmp_path / "held", "holds other files"),
    ):
        with pytest.raises(UserError) as caught:
            ttlora.route(experts, output)
        assert message in str(caught.value)
        assert not out.exists()


def test_methods_and_tasks_that_cannot_be_mixed(bert, llama, runs, tmp_path):
    folder = runs["mood"].parent
    bitfit = fit(bert, folder, "mood", tmp_path / "bitfit", method="bitfit")
    with pytest.raises(UserError, match="is a run of method bitfit, and a batch can mix those of tt-lora or lora"):
        ttlora.route([bitfit, runs["pair"]], tmp_path / "out")
    words = fit(llama, folder, "mood", tmp_path / "words", scoring="prompt")
    with pytest.raises(UserError, match=r"has model .*: experts of a mixture share their base and their way to answer"):
        ttlora.route([words, runs["pair"]], tmp_path / "out")
    heads = fit(llama, folder, "pair", tmp_path / "heads")
    with pytest.raises(UserError, match=r"has scoring 'head', and .*words 'prompt'"):
        ttlora.route([words, heads], tmp_path / "out")
    written = fit(llama, folder, "mood", tmp_path / "written", label_kind="text")
    with pytest.raises(UserError, match="is a run of label kind text, and experts of a mixture answer with"):
        ttlora.route([words, written], tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "great"}], "rows, row 1 has none of the columns that the experts read: sentence, first, second"),
        ([{"first": "great"}], "rows, row 1: no expert can read columns first: they take sentence; first, second"),
        ([{"sentence": "great", "expert": 1}], "rows, row 1: column 'expert' is there already: rename it"),
        ([{"first": "a", "second": "a", "prediction": 1}], "rows, row 1: column 'prediction' is there already"),
        ([], "rows has no rows"),
    ],
)
def test_rows_that_no_expert_can_read(rows, message, routed):
    with pytest.raises(UserError) as caught:
        ttlora.predict(routed[1], rows)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": ["mood", "../mood", "pair"]}, "experts names '../mood', which is no folder in experts"),
        ({"experts": ["mood", "..", "pair"]}, "experts names '..', which is no folder in experts"),
        ({"experts": ["mood", "gone", "pair"]}, "experts names 'gone', which is no folder in experts"),
        ({"experts": ["mood", "mood"]}, "has to be two names or more, each once"),
        ({"experts": "mood"}, "experts is 'mood'"),
        ({"experts": ["mood", "length"]}, "is no router of 2 experts and 64 features"),
        ({"found": {}}, "found has no 'mood'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"base": "0"}, "is the router of another base"),
    ],
)
def test_damaged_record(change, message, router):
    file = router / "router.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        ttlora.predict(router, [{"sentence": "great"}])
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_record_that_is_none(content, router):
    (router / "router.json").write_text(content)
    with pytest.raises(UserError, match=r"router\.json is damaged"):
        ttlora.predict(router, [{"sentence": "great"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("noise"), "is no router: it holds deviation, mean, weight"),
        (lambda tensors: tensors["weight"].fill_(float("nan")), "holds what is no finite number"),
        (lambda tensors: tensors.update(mean=torch.zeros(63)), "mean is 63"),
        (lambda tensors: tensors["deviation"].zero_(), "deviation has an entry that is not above 0"),
        (lambda tensors: tensors.update(weight=tensors["weight"].int()), "holds what is no finite number of 32 bits"),
    ],
)
def test_damaged_weights(change, message, router):
    file = router / "router.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        ttlora.predict(router, [{"sentence": "great"}])
    assert message in str(caught.value)


def test_router_of_another_base(bert, router, tmp_path):
    """Of the same sizes, with one weight changed."""
    other = shutil.copytree(bert, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="is the router of another base"):
        ttlora.predict(router, [{"sentence": "great"}], model=str(other))
    moved = shutil.copytree(bert, tmp_path / "moved")
    assert ttlora.predict(router, [{"sentence": "great"}], model=str(moved))
