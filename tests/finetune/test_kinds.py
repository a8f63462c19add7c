"""Choices, prompts, generation and plain text: from rows of one's own to a finished run."""

import json
import math
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import BAD, GOOD, make_tokenizer, sentiment_rows, write_jsonl
from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import Split, load_data
from ttlora.finetune.finished import FinishedRun
from ttlora.finetune.inputs import Prompted
from ttlora.finetune.objectives import LikelihoodObjective, objective_of
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.run import train
from ttlora.finetune.tasks import Task
from ttlora.finetune.tokens import IGNORED, tokenise

KEYS = {"epochs": 2, "batch_size": 8, "learning_rate": 0.02, "threads": 1, "max_length": 24}


def rows_of(inputs, labels):
    return Split(inputs, labels, [f"rows, line {number}" for number in range(1, 1 + len(inputs))])


def choice_rows(count, seed):
    rows = []
    for number, row in enumerate(sentiment_rows(count, seed)):
        good, bad = GOOD[number % 5], BAD[number % 5]
        first, second = (good, bad) if number % 3 else (bad, good)
        liked = row["label"] == 1
        rows.append({"what": row["sentence"], "one": first, "two": second, "right": int((first == good) != liked)})
    return rows


def recipe_for(model, tmp_path, rows, **keys):
    train = write_jsonl(tmp_path / "train.jsonl", rows(32, 1))
    validation = write_jsonl(tmp_path / "validation.jsonl", rows(12, 2))
    return Recipe(
        model=str(model),
        task="file",
        output=str(tmp_path / "out"),
        train=str(train),
        validation=str(validation),
        **{**KEYS, **keys},
    )


def within(max_length: int) -> Recipe:
    return Recipe(model="m", task="file", output="o", max_length=max_length, max_new_tokens=1)


def finish(recipe):
    record = train(recipe, quiet=True)
    finished = FinishedRun.load(recipe.output)
    evaluation = finished.evaluate()
    assert (evaluation.metrics, evaluation.validation_loss) == (record.metrics, record.validation_loss)
    return record, finished


CHOICE = {"text_column": "what", "label_column": "right", "label_kind": "choice", "choice_columns": "one,two"}


@pytest.mark.parametrize(("kind", "scoring"), [("bert", "head"), ("llama", "head"), ("llama", "prompt")])
def test_choices(kind, scoring, tmp_path, request):
    recipe = recipe_for(request.getfixturevalue(kind), tmp_path, choice_rows, **CHOICE, scoring=scoring)
    record, finished = finish(recipe)
    assert set(record.metrics) == {"accuracy"}
    assert (record.head_parameters == 0) == (scoring == "prompt")
    rows = list(finished.predict(tmp_path / "validation.jsonl"))
    right = [row["prediction"] == ("one", "two")[row["right"]] for row in rows]
    assert sum(right) / len(right) == record.metrics["accuracy"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


def test_choices_that_rows_list_themselves(bert, tmp_path):
    def rows(count, seed):
        listed = [
            {"what": r["what"], "endings": [r["one"], r["two"]], "right": r["right"]} for r in choice_rows(count, seed)
        ]
        listed[0]["endings"].append("house")
        return listed

    recipe = recipe_for(bert, tmp_path, rows, **{**CHOICE, "choice_columns": "endings"}, epochs=1)
    _, finished = finish(recipe)
    first, second = list(finished.predict(tmp_path / "validation.jsonl"))[:2]
    assert list(first["probabilities"]) == first["endings"]
    assert list(second["probabilities"]) == second["endings"]
    assert first["prediction"] in first["endings"]


def test_classes_by_prompt(llama, tmp_path):
    recipe = recipe_for(
        llama,
        tmp_path,
        sentiment_rows,
        text_column="sentence",
        scoring="prompt",
        prompt="the film {sentence} was",
        answers="0=awful 1=great",
        method="lora",
    )
    record, finished = finish(recipe)
    assert record.head_parameters == 0
    assert set(record.metrics) == {"accuracy", "f1_macro"}
    rows = list(finished.predict(tmp_path / "validation.jsonl"))
    assert sum(row["prediction"] == row["label"] for row in rows) / len(rows) == record.metrics["accuracy"]
    assert set(rows[0]["probabilities"]) == {"0", "1"}


def test_generation_learns_to_answer_and_to_stop(llama, tmp_path):
    def rows(count, seed):
        return [{"ask": "the film", "reply": "was great"} for _ in range(count)]

    recipe = recipe_for(
        llama,
        tmp_path,
        rows,
        text_column="ask",
        label_column="reply",
        label_kind="generation",
        method="full",
        epochs=6,
        learning_rate=0.01,
        max_new_tokens=6,
    )
    record, finished = finish(recipe)
    assert list(record.metrics) == ["rouge_l", "exact_match", "perplexity"]
    assert record.metrics["exact_match"] == 1
    assert record.metrics["perplexity"] == pytest.approx(math.exp(record.validation_loss), rel=0.02)
    questions = write_jsonl(tmp_path / "questions.jsonl", [{"ask": "the film"}, {"ask": "the film"}])
    assert [row["prediction"] for row in finished.predict(questions)] == ["was great"] * 2


def test_metamathqa_is_judged_by_its_last_numbers(llama, tmp_path):
    rows = [{"query": "the film", "response": "The answer is: 5"}] * 8
    write_jsonl(tmp_path / "metamathqa" / "train.jsonl", rows)
    write_jsonl(tmp_path / "metamathqa" / "test.jsonl", [{"question": "the film", "answer": "#### 5"}] * 3)
    keys = {**KEYS, "epochs": 1, "max_new_tokens": 2, "loss_on": "all"}
    recipe = Recipe(
        model=str(llama), task="metamathqa", data=str(tmp_path), output=str(tmp_path / "out"), method="lora", **keys
    )
    record, _ = finish(recipe)
    assert record.primary_metric == "last_number"
    assert list(record.metrics) == ["last_number", "perplexity"]


def test_plain_text_has_a_perplexity(llama, tmp_path):
    recipe = recipe_for(llama, tmp_path, sentiment_rows, text_column="sentence", label_kind="text")
    record, finished = finish(recipe)
    assert list(record.metrics) == ["token_accuracy", "perplexity"]
    rows = list(finished.predict(tmp_path / "validation.jsonl"))
    assert all(row["perplexity"] > 1 for row in rows)


def test_chats_need_a_template(llama, tmp_path):
    chat = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "was great"}]
    recipe = recipe_for(
        llama, tmp_path, lambda count, _: [{"messages": chat}] * count, text_column="messages", label_kind="generation"
    )
    training = load_data(recipe).training
    assert training.inputs[0] == Prompted((chat[0],), ("was great",))
    with pytest.raises(UserError, match="the model's tokenizer has no chat template: take an instruction-tuned model"):
        train(recipe, quiet=True)


@pytest.mark.parametrize(
    ("keys", "row", "complaint"),
    [
        (
            {**CHOICE, "choice_columns": "one"},
            {"what": "a", "one": "b", "right": 0},
            "there is but one choice in 'one'",
        ),
        ({**CHOICE, "choice_columns": "one"}, {"what": "a", "one": ["b", "b"], "right": 0}, "there is but one choice"),
        (CHOICE, {"what": "a", "one": "b", "two": "c", "right": 2}, "label 2 names none of the 2 choices"),
        (CHOICE, {"what": "a", "one": "b", "two": "c", "right": None}, "line 1 has no label: column 'right' is empty"),
        (CHOICE, {"what": "a", "one": "b", "right": 0}, "there is no column 'two', only what, one, right"),
        ({"label_kind": "generation"}, {"text": "a"}, "there is no column 'label', only text"),
        ({"label_kind": "generation"}, {"text": [{"role": "user"}]}, "no message with role and content"),
        ({"label_kind": "generation"}, {"text": [{"role": "user", "content": "a"}]}, "has to end with the assistant's"),
        ({"scoring": "prompt", "answers": "7=a 8=b"}, {"text": "a", "label": 1}, "`answers`: 1, 2 have no answer"),
        ({"scoring": "prompt", "answers": "1=a 2=a"}, {"text": "a", "label": 1}, "two labels have the same answer"),
        ({"scoring": "prompt"}, {"text": "a", "label": 1.5}, "the labels are numbers, which no prompt can ask for"),
    ],
)
def test_wrong_rows(keys, row, complaint, tmp_path):
    others = [{**row, "label": 2}] if "label" in row else []
    recipe = recipe_for("m", tmp_path, lambda *_: [row, *others], **keys)
    with pytest.raises(UserError, match=complaint):
        load_data(recipe)


def test_an_encoder_does_not_write(bert, tmp_path):
    recipe = recipe_for(bert, tmp_path, sentiment_rows, text_column="sentence", label_kind="text")
    with pytest.raises(UserError, match="a bert does not write from left to right; use `scoring` head"):
        train(recipe, quiet=True)


def test_labels_of_a_choice_by_number_column_or_text(tmp_path):
    rows = [{"what": "a", "one": "b", "two": "c", "right": right} for right in (1, "1", "two", "c", 0)]
    recipe = recipe_for("m", tmp_path, lambda *_: rows, **CHOICE)
    assert load_data(recipe).training.labels == [1, 1, 1, 1, 0]


@pytest.fixture
def likelihood(llama):
    task = Task("file", ("text",), scoring="prompt", labels=(0, 1), prompt="{text}")
    base = load_base(str(llama), task)
    return LikelihoodObjective(task, Base(base.name, base.model.float(), base.tokenizer, ()), within(40))


def test_likelihoods_are_the_models_own(likelihood, llama):
    model = load_base(str(llama), likelihood.task).model.float().eval()
    prompt = Prompted("the film was", ("great", "awful people", "a story about the house"))
    rows, cut = likelihood.encode(rows_of([prompt], [1]))
    assert cut == 0
    with torch.no_grad():
        loss, probabilities = likelihood.compute(model, likelihood.collate(rows))
        scores = []
        for answer in prompt.answers:
            ids = likelihood.tokenizer(f"{prompt.prompt} {answer}", return_tensors="pt")["input_ids"]
            logs = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            # [CLS] the film was | answer [SEP]
            scores.append(logs[3:].mean())
    torch.testing.assert_close(probabilities[0], torch.stack(scores).softmax(-1))
    torch.testing.assert_close(loss, -scores[1])


def test_rows_with_few_choices_beside_rows_with_many(likelihood, llama):
    model = load_base(str(llama), likelihood.task).model.float().eval()
    few, many = Prompted("the film", ("great", "awful")), Prompted("a story", ("dull", "warm", "cold", "fine"))
    both, _ = likelihood.encode(rows_of([few, many], [0, 3]))
    with torch.no_grad():
        _, probabilities = likelihood.compute(model, likelihood.collate(both))
        _, alone = likelihood.compute(model, likelihood.collate([both[0]]))
    torch.testing.assert_close(probabilities[0, :2], alone[0])
    assert probabilities[0, 2:].tolist() == [0, 0]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2))


def test_training_sees_the_right_answer_alone(likelihood):
    rows, _ = likelihood.encode(rows_of([Prompted("the film was", ("great", "awful"))], [1]), for_training=True)
    batch = likelihood.collate(rows)
    assert likelihood.tokenizer.decode(batch["input_ids"][0]) == "[CLS] the film was awful [SEP]"
    assert batch["targets"][0].tolist()[:4] == [IGNORED] * 4


def test_a_long_prompt_loses_its_beginning_and_a_long_answer_its_end(likelihood):
    likelihood.max_length = 6
    long = Prompted("the film was a story about house", ("great people",))
    rows, cut = likelihood.encode(rows_of([long], [0]))
    assert cut == 1
    assert likelihood.tokenizer.decode(rows[0]["input_ids"][0]) == "[CLS] about house great people [SEP]"
    assert rows[0]["targets"][0].count(IGNORED) == 3
    rows, _ = likelihood.encode(rows_of([Prompted("the", ("a story about house and its people",))], [0]))
    assert len(rows[0]["input_ids"][0]) == 6


def test_what_is_cut_is_counted():
    tokenizer = make_tokenizer()
    rows = list(tokenise([("the film was great",), ("dull",), ("the film was",)], tokenizer, max_length=5))
    assert [(len(row["input_ids"]), was_cut) for row, was_cut in rows] == [(5, True), (3, False), (5, False)]
    ((row, was_cut),) = tokenise([("the film", "great")], tokenizer, max_length=20)
    assert (tokenizer.decode(row["input_ids"]), was_cut) == ("[CLS] the film [SEP] great [SEP]", False)


def test_long_rows_are_told_once(bert, tmp_path, capfd):
    recipe = recipe_for(bert, tmp_path, sentiment_rows, text_column="sentence", max_length=6, epochs=2)
    train(recipe)
    said = [line for line in capfd.readouterr().err.splitlines() if "were cut" in line]
    assert len(said) == 1
    assert "training rows and" in said[0]
    assert "longer than 6 tokens and were cut (max_length)" in said[0]


def test_a_batch_of_a_head_is_padded(bert):
    base = load_base(str(bert), Task("file", ("text",), labels=(0, 1)))
    objective = objective_of(Task("file", ("text",), labels=(0, 1)), base, within(20))
    rows, _ = objective.encode(rows_of([("the film was great",), ("dull",)], [1, 0]))
    batch = objective.collate(list(rows))
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_a_run_writes_its_task_down(llama, tmp_path):
    recipe = recipe_for(llama, tmp_path, choice_rows, **CHOICE, scoring="prompt", epochs=1)
    train(recipe, quiet=True)
    task = json.loads((tmp_path / "out" / "adapter" / "task.json").read_text())
    assert (task["kind"], task["scoring"], task["choices"]) == ("choice", "prompt", ["one", "two"])


@pytest.mark.parametrize("method", ["prompt", "lora"])
def test_what_is_generated_does_not_depend_on_the_rows_beside(method, llama, tmp_path):
    def rows(count, seed):
        return [{"ask": row["sentence"], "reply": "was great"} for row in sentiment_rows(count, seed)]

    # in 16 bits, two tokens may be as likely as each other
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).save_pretrained(model)
    keys = {"text_column": "ask", "label_column": "reply", "label_kind": "generation", "max_new_tokens": 4}
    recipe = recipe_for(model, tmp_path, rows, **keys, method=method, epochs=1)
    _, finished = finish(recipe)
    together = [row["prediction"] for row in finished.predict(tmp_path / "validation.jsonl")]
    for number, row in enumerate(rows(12, 2)):
        alone = write_jsonl(tmp_path / "alone" / f"{number}.jsonl", [row])
        assert [answer["prediction"] for answer in finished.predict(alone)] == together[number : number + 1]
