"""Language models through TRL: what is learned of texts and chats, rows packed into one, and preferences."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import BAD, GOOD, write_jsonl
from tests.finetune.test_resume import killed, log, outcome
from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import Split, load_data
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.inputs import Preferred, Prompted
from ttlora.finetune.language import LanguageObjective, PreferenceObjective
from ttlora.finetune.methods import find_method
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import IGNORED
from ttlora.finetune.trainer import TaskTrainer

# a turn begins with its role and ends with [SEP]
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ {'system': 'the', 'user': 'people', 'assistant': 'story', 'tool': 'house'}[m.role] }} "
    "{{ m.content or 'film' }} [SEP] {% endfor %}{% if add_generation_prompt %}story {% endif %}"
)
MARKED_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}story {% generation %}{{ m.content }} [SEP]"
    "{% endgeneration %} {% else %}people {{ m.content }} [SEP] {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}story {% endif %}"
)
USER, ANSWER = {"role": "user", "content": "was"}, {"role": "assistant", "content": "great"}
CHAT = [{"role": "system", "content": "dull"}, USER, ANSWER, USER, {"role": "assistant", "content": "warm film"}]


def recipe_for(model: Any, folder: Any, rows: list[dict[str, Any]], kind: str, **keys: Any) -> Recipe:
    file = str(write_jsonl(folder / "rows.jsonl", rows))
    common = {"epochs": 2, "batch_size": 4, "learning_rate": 0.02, "threads": 1, "max_length": 24, "method": "tt-lora"}
    files = {"train": file, "validation": file, "output": str(folder / "out")}
    return Recipe(model=str(model), task="file", label_kind=kind, **{**common, **files, **keys})


def adapted(recipe: Recipe, task: Task) -> Base:
    method = find_method(recipe.method)
    return method.adapt(load_base(recipe.model, task), method.complete(recipe))


def learned(model: Any, given: Any, template: str | None = None, **keys: Any) -> tuple[str, str]:
    """A row as text, and what of it is learned."""
    task = Task("file", ("text",), kind="generation")
    base = load_base(str(model), task)
    base.tokenizer.chat_template = template
    recipe = Recipe(model="m", task="file", output="o", max_new_tokens=1, **{"max_length": 24, **keys})
    (row,), _ = LanguageObjective(task, base, recipe).encode(Split([given], [0], ["rows, line 1"]))
    assert all(target in (IGNORED, token) for target, token in zip(row["labels"], row["input_ids"], strict=True))
    decode = base.tokenizer.decode
    return decode(row["input_ids"]), decode([target for target in row["labels"] if target != IGNORED])


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE])
@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        (None, "warm film [SEP]"),
        ("answer", "warm film [SEP]"),
        ("assistant", "great [SEP] warm film [SEP]"),
    ],
)
def test_what_is_learned_of_a_chat(llama, template, loss_on, expected):
    chat = Prompted(tuple(CHAT[1:-1]), ("warm film",))
    text, target = learned(llama, chat, template, loss_on=loss_on)
    assert text == "people was [SEP] story great [SEP] people was [SEP] story warm film [SEP]"
    assert target == expected


def test_all_of_a_row_is_learned(llama):
    chat = Prompted(tuple(CHAT[:-1]), ("warm film",))
    text, target = learned(llama, chat, PLAIN_TEMPLATE, loss_on="all")
    assert text == target
    assert text.startswith("the dull [SEP] people was")
    text, target = learned(llama, Prompted("the film was", ("great",)), loss_on="all")
    assert text == target == "[CLS] the film was great [SEP]"


def test_a_long_chat_loses_its_beginning(llama):
    chat = Prompted(tuple(CHAT[:-1]), ("warm film",))
    text, target = learned(llama, chat, PLAIN_TEMPLATE, max_length=8)
    assert (text, target) == ("the was [SEP] story warm film [SEP]", "warm film [SEP]") or len(text.split()) == 8
    assert target == "warm film [SEP]"


def test_turns_need_roles_and_a_template_that_keeps_what_it_wrote(llama):
    with pytest.raises(UserError, match="line 1: `loss_on` assistant needs chats, whose messages have roles"):
        learned(llama, Prompted("the film was", ("great",)), loss_on="assistant")
    shrinking = (
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }} {% endif %}[SEP] {% endfor %}"
    )
    with pytest.raises(UserError, match=r"writes an earlier turn otherwise when more follows.*`loss_on` to answer"):
        learned(llama, Prompted(tuple(CHAT[:-1]), ("warm film",)), shrinking, loss_on="assistant")


def test_chats_with_tools(llama, tmp_path):
    """Calls of tools, their answers, and the tools' descriptions reach the template."""
    template = "{% if tools %}house {% endif %}" + PLAIN_TEMPLATE.replace(
        "{{ m.content or 'film' }}",
        "{{ m.tool_calls[0].function.name if m.tool_calls else m.content }}",
    )
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "lovely", "arguments": {}}}]}
    chat = [USER, call, {"role": "tool", "content": "dull"}, ANSWER]
    tools = [{"type": "function", "function": {"name": "lovely"}}]
    rows = [{"messages": chat, "tools": tools}, {"messages": chat[:2], "tools": json.dumps(tools)}]
    recipe = recipe_for(llama, tmp_path, rows, "generation", text_column="messages")
    first, second = load_data(recipe).training.inputs
    assert learned(llama, first, template, loss_on="assistant") == (
        "house people was [SEP] story lovely [SEP] house dull [SEP] story great [SEP]",
        "lovely [SEP] great [SEP]",
    )
    assert learned(llama, second, template) == ("house people was [SEP] story lovely [SEP]", "lovely [SEP]")


def test_packed_rows_come_to_the_same_loss(llama32, tmp_path, capfd):
    rows = [{"text": " ".join([*GOOD, *BAD][: 3 + number % 6])} for number in range(12)]
    recipe = recipe_for(llama32, tmp_path, rows, "text", packing=True)
    data = load_data(recipe)
    base = adapted(recipe, data.task)
    objective = LanguageObjective(data.task, base, recipe)
    packed, plain = objective.encode(data.training, for_training=True)[0], objective.encode(data.training)[0]
    assert len(packed) < len(plain)
    assert "Map" not in capfd.readouterr().err
    assert max(len(row["input_ids"]) for row in packed) <= 24
    base.model.eval()
    losses = [objective.compute(base.model, objective.collate(list(of))).loss.item() for of in (packed, plain)]
    counts = [objective.items(objective.collate(list(of))) for of in (packed, plain)]
    assert counts[0] == counts[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_packed_training(llama32, tmp_path):
    rows = [{"text": " ".join([*GOOD, *BAD][: 3 + number % 6])} for number in range(24)]
    record = train(recipe_for(llama32, tmp_path, rows, "text", packing=True, batch_size=2, rows_at_once=1), quiet=True)
    first, *_, last = [line["loss"] for line in log(tmp_path / "out") if "loss" in line]
    assert last < first
    assert record.metrics["perplexity"] == pytest.approx(math.exp(record.validation_loss), rel=1e-4)


def test_models_that_would_mix_packed_rows_are_refused(llama32, tmp_path):
    recipe = recipe_for(llama32, tmp_path, [{"text": "the film"}] * 4, "text", packing=True, method="prompt")
    with pytest.raises(
        UserError, match=r"`packing`: .* with `method` prompt rows that are packed would see one another"
    ):
        train(recipe, quiet=True)
    assert not (tmp_path / "out").exists()


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": "the film was", "chosen": GOOD[number % 5], "rejected": BAD[number % 5]} for number in range(count)
    ]


def test_preferences_raise_the_margin(llama32, tmp_path):
    recipe = recipe_for(llama32, tmp_path, pairs(16), "preference", epochs=20, learning_rate=1e-3)
    record = train(recipe, quiet=True)
    assert record.metrics["reward_margin"] > 0.05
    assert record.metrics["accuracy"] > 0.9
    assert record.validation_loss < math.log(2) - 0.02
    finished = FinishedRun.load(recipe.output)
    assert finished.evaluate().metrics == record.metrics
    lines = log(tmp_path / "out")
    margins = [line["rewards/margins"] for line in lines if "rewards/margins" in line]
    assert margins[0] == pytest.approx(0, abs=1e-6)
    assert margins[-1] > margins[0]
    measured = [line for line in lines if "validation_reward_margin" in line]
    assert len(measured) == 20
    row = next(iter(finished.predict([{"prompt": "the film was", "chosen": BAD[0], "rejected": GOOD[0]}])))
    assert row["prediction"] == "rejected"
    assert row["rewards"]["rejected"] > row["rewards"]["chosen"]


def test_the_loss_of_preferences_is_trls(llama32, tmp_path):
    """Before the first step the model is its own reference: -log(σ(0)); after it, TRL's loss is what we measure."""
    recipe = recipe_for(llama32, tmp_path, pairs(4), "preference", epochs=2, learning_rate=1e-30, patience=9)
    train(recipe, quiet=True)
    losses = [line[name] for line in log(tmp_path / "out") for name in ("loss", "validation_loss") if name in line]
    assert losses == pytest.approx([math.log(2)] * len(losses), abs=1e-5)


@pytest.mark.parametrize("kind", ["preference", "text"])
def test_a_run_goes_on_to_the_same_end(kind, llama32, tmp_path):
    rows = [{**row, "text": row["chosen"]} for row in pairs(10)]
    recipe = recipe_for(llama32, tmp_path, rows, kind, rows_at_once=2)
    train(recipe, quiet=True)
    parts = replace(recipe, output=str(tmp_path / "parts"))
    with killed(TaskTrainer, "training_step", 9):
        train(parts, quiet=True)
    train(replace(parts, resume=True), quiet=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "awful"}]},
            ("people was [SEP] story", "great [SEP]", "awful [SEP]"),
        ),
        (
            # the prompt is what both chats begin with
            {
                "prompt": "was",
                "chosen": [USER, ANSWER],
                "rejected": [USER, {"role": "assistant", "content": "dull film"}],
            },
            ("people was [SEP] story", "great [SEP]", "dull film [SEP]"),
        ),
        (
            {"prompt": "the film was", "chosen": "great film", "rejected": "great people"},
            ("[CLS] the film was", "great film [SEP]", "great people [SEP]"),
        ),
    ],
)
def test_tokens_of_a_preference(llama, tmp_path, row, expected):
    recipe = recipe_for(llama, tmp_path, [row], "preference")
    data = load_data(recipe)
    assert isinstance(data.training.inputs[0], Preferred)
    base = adapted(recipe, data.task)
    base.tokenizer.chat_template = PLAIN_TEMPLATE
    (encoded,), cut = PreferenceObjective(data.task, base, recipe).encode(data.training)
    decode = AutoTokenizer.from_pretrained(llama).decode
    assert tuple(decode(encoded[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")) == expected
    assert cut == 0


def test_long_preferences_are_cut(llama, tmp_path):
    row = {"prompt": "the film was a story about house", "chosen": "great lovely warm", "rejected": "dull"}
    recipe = recipe_for(llama, tmp_path, [row], "preference", max_length=6)
    data = load_data(recipe)
    base = adapted(recipe, data.task)
    (encoded,), cut = PreferenceObjective(data.task, base, recipe).encode(data.training)
    decode = AutoTokenizer.from_pretrained(llama).decode
    assert decode(encoded["prompt_ids"] + encoded["chosen_ids"]) == "[CLS] house great lovely warm [SEP]"
    assert decode(encoded["prompt_ids"] + encoded["rejected_ids"]) == "[CLS] house dull [SEP]"
    assert cut == 1


@pytest.mark.parametrize(
    ("kind", "keys", "row", "complaint"),
    [
        (
            "preference",
            {},
            {"prompt": "a", "chosen": "b"},
            "line 1: there is no column 'rejected', only prompt, chosen",
        ),
        ("preference", {}, {"prompt": "a", "chosen": "b", "rejected": ""}, "column 'rejected' is empty"),
        (
            "preference",
            {},
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "hold the same, so there is nothing to pre",
        ),
        (
            "preference",
            {},
            {"prompt": "a", "chosen": [USER, ANSWER], "rejected": "b"},
            "is a text, and the other a chat",
        ),
        ("preference", {}, {"chosen": [ANSWER], "rejected": [USER]}, "has to go on from a prompt"),
        ("preference", {"choice_columns": "one"}, {}, "`label_kind` preference has two, the preferred answer first"),
        ("preference", {"method": "full"}, pairs(1)[0], "compares a model with its base, which `method` full changes"),
        ("preference", {"packing": True}, {}, "`packing` goes with `label_kind` generation or text"),
        ("classification", {"packing": True}, {}, "`packing` goes with `label_kind` generation or text"),
        ("text", {"loss_on": "all"}, {}, "`loss_on` goes with `label_kind` generation"),
        ("generation", {"beta": 0.2}, {}, "`beta` goes with `label_kind` preference"),
        ("generation", {}, {"text": [USER, ANSWER], "tools": "{"}, "column 'tools' holds no JSON"),
        ("generation", {}, {"text": [USER, ANSWER], "tools": {}}, "column 'tools' holds no list of tools but {}"),
    ],
)
def test_wrong_use(llama, tmp_path, kind, keys, row, complaint):
    with pytest.raises(UserError, match=complaint):
        train(recipe_for(llama, tmp_path, [row] * 2, kind, **keys), quiet=True)
    assert not (tmp_path / "out").exists()


def test_what_trains_on_a_quantised_model_stays_in_float32(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "is_loaded_in_8bit", True, raising=False)
    dtypes: set[torch.dtype] = set()
    original = TaskTrainer.create_optimizer

    def create(self: Any, *options: Any) -> Any:
        dtypes.update(weight.dtype for weight in self.model.parameters() if weight.requires_grad)
        return original(self, *options)

    monkeypatch.setattr(TaskTrainer, "create_optimizer", create)
    train(recipe_for(llama, tmp_path, [{"text": "the film was great"}] * 4, "text", epochs=1), quiet=True)
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("method", ["prompt", "prefix", "p-tuning", "loretta-rep"])
def test_the_loss_is_that_of_the_logits(method, llama32, tmp_path):
    """Also where virtual tokens stand before a row: its first token counts for nothing."""
    rows = [{"text": " ".join([*GOOD, *BAD][: 2 + number % 6])} for number in range(8)]
    settings = None if method == "loretta-rep" else "num_virtual_tokens=4"
    recipe = recipe_for(llama32, tmp_path, rows, "text", method=method, settings=settings, epochs=1, batch_size=3)
    record = train(recipe, quiet=True)
    finished = FinishedRun.load(recipe.output)
    model, encoded = finished.objective.base.model.eval(), finished.objective.encode(load_data(recipe).validation)[0]
    total = 0.0
    for row in encoded:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] : -1]
        total += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
    tokens = sum(len(row["input_ids"]) - 1 for row in encoded)
    assert record.validation_loss == pytest.approx(total / tokens, rel=1e-5)
