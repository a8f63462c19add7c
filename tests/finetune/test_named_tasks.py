"""Every named task reads rows in the fields of the hub's configs, for a head and for a prompt."""

import pytest

from tests.conftest import write_jsonl
from ttlora.errors import UserError
from ttlora.finetune import data
from ttlora.finetune.data import load_data
from ttlora.finetune.inputs import Prompted
from ttlora.finetune.named_tasks import NAMED
from ttlora.finetune.recipe import Recipe

PAIR = {"sentence1": "A b.", "sentence2": "C d."}
# task: a row, its label, what a head reads, the end of the prompt, the answer to the label
ROWS = {
    "glue/cola": ({"sentence": "A b."}, 1, ("A b.",), "grammatical? Yes or No?\nAnswer:", "Yes"),
    "glue/mnli": (
        {"premise": "A.", "hypothesis": "B."},
        1,
        ("A.", "B."),
        'that "B."? Yes, No, or Maybe?\nAnswer:',
        "Maybe",
    ),
    "glue/mnli-mismatched": ({"premise": "A.", "hypothesis": "B."}, 2, ("A.", "B."), "or Maybe?\nAnswer:", "No"),
    "glue/mrpc": (PAIR, 1, ("A b.", "C d."), "say the same? Yes or No?\nAnswer:", "Yes"),
    "glue/qnli": ({"question": "Q?", "sentence": "S."}, 0, ("Q?", "S."), "question: Q? Yes or No?\nAnswer:", "Yes"),
    "glue/qqp": ({"question1": "Q?", "question2": "P?"}, 1, ("Q?", "P?"), "the same? Yes or No?\nAnswer:", "Yes"),
    "glue/rte": (PAIR, 0, ("A b.", "C d."), 'that "C d."? Yes or No?\nAnswer:', "Yes"),
    "glue/sst2": ({"sentence": "A b."}, 1, ("A b.",), "A b.\nAll in all, it was", "great"),
    "glue/wnli": (PAIR, 1, ("A b.", "C d."), 'that "C d."? Yes or No?\nAnswer:', "Yes"),
    "superglue/boolq": (
        {"question": "is it", "passage": "P."},
        1,
        ("is it", "P."),
        "is it? Yes or No?\nAnswer:",
        "Yes",
    ),
    "superglue/cb": (
        {"premise": "P.", "hypothesis": "H"},
        2,
        ("P.", "H"),
        'that "H"? Yes, No, or Maybe?\nAnswer:',
        "Maybe",
    ),
    "superglue/multirc": (
        {"paragraph": "P.", "question": "Q?", "answer": "A"},
        1,
        ("P.", "Q? A"),
        "Is the answer A? Yes or No?\nAnswer:",
        "Yes",
    ),
    "superglue/rte": ({"premise": "P.", "hypothesis": "H."}, 1, ("P.", "H."), "Yes or No?\nAnswer:", "No"),
    "superglue/wic": (
        {"word": "w", "sentence1": "A w.", "sentence2": "B w.", "start1": 2, "end1": 3},
        1,
        ("w: A w.", "w: B w."),
        'Does "w" mean the same in both sentences? Yes or No?\nAnswer:',
        "Yes",
    ),
    "superglue/wsc": (
        {"text": "Ann saw Eve. She ran.", "span1_text": "Ann", "span2_text": "She", "span1_index": 0, "span2_index": 3},
        0,
        ("Ann saw Eve. She ran.", '"She" refers to Ann'),
        'does "She" refer to Ann? Yes or No?\nAnswer:',
        "No",
    ),
}
COPA = {"premise": "It fell.", "choice1": "I slept.", "choice2": "It broke."}
RECORD = {
    "passage": "Ann Lee met Bob. Lee left.",
    "query": "@placeholder met Bob.",
    "entities": ["Ann Lee", "Bob", "Lee", "Bob"],
    "entity_spans": {"text": [], "start": [], "end": []},
}


def load(tmp_path, name, rows, scoring="head"):
    task = NAMED[name]
    write_jsonl(tmp_path / task.folder / "train.jsonl", rows)
    write_jsonl(tmp_path / task.folder / f"{task.validation}.jsonl", rows)
    data = load_data(Recipe(model="m", task=name, output="o", data=str(tmp_path), scoring=scoring))
    return data.task, data.training, data.validation


def test_no_task_is_left_out():
    assert set(ROWS) == set(NAMED) - {"glue/stsb", "superglue/copa", "superglue/record", "metamathqa"}


@pytest.mark.parametrize("name", ROWS)
def test_classes(name, tmp_path):
    row, label, texts, end, answer = ROWS[name]
    labels = range(3 if "mnli" in name or "cb" in name else 2)
    rows = [{**row, "label": label, "idx": 0}, *({**row, "label": other, "idx": 1} for other in labels)]
    task, train, _ = load(tmp_path, name, rows)
    assert (task.kind, task.labels, train.labels[0]) == ("classification", tuple(labels), label)
    assert train.inputs[0] == texts

    task, train, validation = load(tmp_path, name, rows, scoring="prompt")
    given = train.inputs[0]
    assert given.prompt.endswith(end)
    assert given.answers[label] == answer
    assert len(set(given.answers)) == len(labels)
    assert train.fingerprint == validation.fingerprint


def test_numbers(tmp_path):
    rows = [{**PAIR, "label": score} for score in (0.5, 4.75)]
    task, train, _ = load(tmp_path, "glue/stsb", rows)
    assert (task.kind, train.labels, train.inputs[0]) == ("regression", [0.5, 4.75], ("A b.", "C d."))


def test_copa_words_its_question(tmp_path):
    rows = [{**COPA, "question": "effect", "label": 1}, {**COPA, "question": "cause", "label": 0}]
    task, train, _ = load(tmp_path, "superglue/copa", rows)
    assert (task.kind, task.labels, train.labels) == ("choice", ("choice1", "choice2"), [1, 0])
    assert train.inputs[0] == (("It fell. As a result,", "I slept."), ("It fell. As a result,", "It broke."))
    _, train, _ = load(tmp_path, "superglue/copa", rows, scoring="prompt")
    assert train.inputs[1] == Prompted("It fell. This happened because", ("I slept.", "It broke."))


def test_record_keeps_one_of_the_right_spellings(tmp_path):
    _, train, _ = load(tmp_path, "superglue/record", [{**RECORD, "answers": ["Lee", "Ann Lee"]}])
    assert [texts[-1] for texts in train.inputs[0]] == ["Ann Lee", "Bob"]
    assert train.inputs[0][0][0].startswith("Ann Lee met Bob. Lee left. @placeholder")
    assert train.labels == [0]
    _, train, _ = load(tmp_path, "superglue/record", [{**RECORD, "answers": ["Bob"]}], scoring="prompt")
    assert (train.inputs[0].answers, train.labels) == (("Ann Lee", "Bob", "Lee"), [1])
    with pytest.raises(UserError, match=r"line 1: of the choices, 0 are in 'answers'"):
        load(tmp_path, "superglue/record", [{**RECORD, "answers": ["Carl"]}])


MATHS = {
    "train": [{"type": "GSM", "query": "2 + 3?", "original_question": "3 + 2?", "response": "The answer is: 5"}],
    "test": [{"question": "4 + 5?", "answer": "4 + 5 = <<4+5=9>>9\n#### 9"}],
}


def test_metamathqa_is_measured_on_gsm8k(tmp_path):
    for split, rows in MATHS.items():
        write_jsonl(tmp_path / "metamathqa" / f"{split}.jsonl", rows)
    maths = load_data(Recipe(model="m", task="metamathqa", output="o", data=str(tmp_path)))
    assert maths.training.inputs[0] == Prompted("Question: 2 + 3? Think step by step.\nAnswer:", ("The answer is: 5",))
    assert maths.validation.inputs[0] == Prompted(
        "Question: 4 + 5? Think step by step.\nAnswer:", (MATHS["test"][0]["answer"],)
    )


def test_metamathqa_comes_from_two_places_of_the_hub(monkeypatch):
    opened = []

    def open_hub(*place):
        opened.append(place)
        return place[0], [("row 1", MATHS[place[2]][0])]

    monkeypatch.setattr(data, "_open_hub", open_hub)
    load_data(Recipe(model="m", task="metamathqa", output="o"))
    way_out = "give the data with `data` DIR, where DIR/metamathqa/train.jsonl and {}.jsonl are"
    assert opened == [
        ("meta-math/MetaMathQA", "default", "train", way_out.format("train")),
        ("openai/gsm8k", "main", "test", way_out.format("test")),
    ]
