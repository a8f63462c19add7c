import csv
import json
from datetime import date
from pathlib import Path

import datasets
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from tests.conftest import write_jsonl
from ttlora.errors import UserError
from ttlora.finetune import data as data_module
from ttlora.finetune.data import load_data, load_validation
from ttlora.finetune.files import read_rows
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task

ROWS = [{"text": 'a, "b"', "label": "pos"}, {"text": "c\nd", "label": "neg"}, {"text": "", "label": "pos"}]


def load(train, validation, **keys):
    paths = {}
    for name, content in (("train", train), ("validation", validation)):
        paths[name] = str(content)
    data = load_data(Recipe(model="m", task="file", output="o", **paths, **keys))
    return data.task, data.training, data.validation


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, rows)
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_formats_hold_the_same_rows(ending, tmp_path):
    path = write(tmp_path / f"rows.{ending}", ROWS)
    task, train, validation = load(path, path)
    assert train.fingerprint == validation.fingerprint
    assert list(train.inputs) == [('a, "b"',), ("c\nd",), ("",)]
    assert task.labels == ("neg", "pos")
    assert train.labels == [1, 0, 1]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_several_files_are_one_split(ending, tmp_path):
    first, second = write(tmp_path / f"first.{ending}", ROWS[:1]), write(tmp_path / f"second.{ending}", ROWS[1:2])
    with_comma = write(tmp_path / f"one,two.{ending}", ROWS[:2])
    _, training, validation = load(f"{first},{second}", with_comma)
    assert training.fingerprint == validation.fingerprint
    assert [place.rpartition(", ")[0] for place in training.places] == [str(first), str(second)]
    recipe = Recipe(model="m", task="file", output="o", train=[str(first), str(second)], validation=str(with_comma))
    assert load_data(recipe).training.fingerprint == training.fingerprint
    assert recipe.with_defaults({}).train == [str(first), str(second)]
    assert recipe.with_defaults({}).validation == str(with_comma)


@pytest.mark.parametrize("share", ["10%", "33.3%", "1%"])
def test_a_share_of_the_training_rows_is_measured(share, tmp_path):
    rows = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(30)]
    file = write(tmp_path / "rows.jsonl", rows)
    task, training, validation = load(file, share, seed=3)
    assert len(validation) == max(1, round(float(share[:-1]) * 0.3))
    assert sorted([*training.places, *validation.places]) == sorted(f"{file}, line {n + 1}" for n in range(30))
    recipe = Recipe(model="m", task="file", output="o", train=str(file), validation=share, seed=3)
    assert load_validation(recipe.with_defaults({}), task).fingerprint == validation.fingerprint
    assert any(load(file, share, seed=seed)[2].fingerprint != validation.fingerprint for seed in (4, 5, 6))


@pytest.mark.parametrize("share", ["0%", "100%", "0.0%", "-5%", "five%"])
def test_a_share_is_a_share(share, tmp_path):
    with pytest.raises(UserError, match=r"`validation` is .*, and a share is above 0% and below 100%"):
        Recipe(model="m", task="file", output="o", train="t.jsonl", validation=share)


def test_a_share_leaves_rows_to_train_on(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    with pytest.raises(UserError, match="`validation` 90% of 2 training rows leaves none to train on"):
        load(file, "90%")


def test_a_split_of_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(data_module, "require_on_hub", lambda *told: asked.append(told[:2]))
    hub = {"train": ROWS[:2], "test": ROWS[1:2]}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: hub[split])
    _, training, validation = load("org/reviews:train", "org/reviews:test")
    assert asked == [("dataset", "org/reviews")] * 2
    assert list(training.places) == ["org/reviews, row 1", "org/reviews, row 2"]
    assert len(validation) == 1
    recipe = Recipe(model="m", task="file", output="o", train="org/reviews:train", validation="10%")
    assert recipe.with_defaults({}).train == "org/reviews:train"


def test_a_data_set_of_the_hub_without_network():
    with pytest.raises(UserError, match=r"nobody/nothing.* could not be .*; give a file as `train`"):
        load("nobody/nothing:train", "10%")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_whole_numbers_are_classes_in_their_order(ending, tmp_path):
    path = write(tmp_path / f"rows.{ending}", [{"text": "a", "label": label} for label in (10, 9, 2, 10)])
    task, train, _ = load(path, path)
    assert (task.kind, task.labels, train.labels) == ("classification", (2, 9, 10), [2, 1, 0, 2])


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_fractions_are_regression(ending, tmp_path):
    path = write(tmp_path / f"rows.{ending}", [{"text": "a", "label": label} for label in (0.5, 2.0, 1.25)])
    task, train, _ = load(path, path)
    assert (task.kind, task.labels, train.labels) == ("regression", (), [0.5, 2.0, 1.25])
    assert task.metrics == ("spearman", "pearson")


def test_labels_that_can_be_both_need_a_word(tmp_path):
    stars = write(tmp_path / "stars.jsonl", [{"text": "a", "label": label} for label in (1.0, 2.0, 5.0)])
    with pytest.raises(UserError, match="say `label_kind` classification or `label_kind` regression"):
        load(stars, stars)
    assert load(stars, stars, label_kind="regression")[1].labels == [1.0, 2.0, 5.0]
    assert load(stars, stars, label_kind="classification")[0].labels == (1, 2, 5)
    many = write(tmp_path / "many.jsonl", [{"text": "a", "label": label} for label in range(200)])
    with pytest.raises(UserError, match="say `label_kind`"):
        load(many, many)


def test_booleans_and_mixed_labels_are_classes(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in (True, False, "unsure", 3)])
    assert load(path, path)[0].labels == ("3", "false", "true", "unsure")


def test_two_texts_and_other_column_names(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "a", "p": 7, "y": "x"}, {"q": "c", "p": "d", "y": "z"}])
    _, train, _ = load(path, path, text_column="q", text_pair_column="p", label_column="y")
    assert list(train.inputs) == [("a", "7"), ("c", "d")]


def test_named_task_comes_from_its_folder(data):
    recipe = Recipe(model="m", task="glue/sst2", output="o", data=str(data))
    data = load_data(recipe)
    task, train, validation = data.task, data.training, data.validation
    assert (len(train), len(validation), task.labels) == (48, 24, (0, 1))
    assert load_validation(recipe, task).fingerprint == validation.fingerprint


def test_named_task_in_csv(tmp_path):
    (tmp_path / "rte").mkdir()
    for split in ("train", "validation"):
        write(tmp_path / "rte" / f"{split}.csv", [{"sentence1": "a", "sentence2": "b", "label": n} for n in (0, 1)])
    train = load_data(Recipe(model="m", task="glue/rte", output="o", data=str(tmp_path))).training
    assert list(train.inputs) == [("a", "b"), ("a", "b")]


def test_drawn_rows_depend_on_the_seed_alone(data):
    def texts(count, seed):
        recipe = Recipe(model="m", task="glue/sst2", output="o", data=str(data), max_train_examples=count, seed=seed)
        return list(load_data(recipe).training.inputs)

    assert len(texts(10, 1)) == 10
    assert texts(10, 1) == texts(10, 1) != texts(10, 2)
    assert len(set(texts(10, 1)) & set(texts(48, 1))) == 10
    assert texts(1000, 1) == texts(48, 1)


def test_labels_outside_the_drawn_rows_are_known(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": str(n), "label": n % 20} for n in range(60)])
    task, train, _ = load(path, path, max_train_examples=5)
    assert (len(train), len(task.labels)) == (5, 20)


def wrong(content: str, complaint: str, name: str = "train.jsonl"):
    return pytest.param(name, content, complaint, id=complaint)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        wrong("", r"train\.jsonl has no rows"),
        wrong("\n\n", r"train\.jsonl has no rows"),
        wrong('{"text": "a", "label": 1}\n{"text": "b", lab\n', r"train\.jsonl, line 2 is no JSON: .*"),
        wrong('{"text": "a", "label": 1}\n[1, 2]\n', "line 2 is no JSON object but"),
        wrong('{"text": "a", "label": 1}\n\n{"text": "b", "label": null}\n', "line 3 has no label: column 'label'"),
        wrong('{"text": "a", "label": " "}\n', "line 1 has no label"),
        wrong('{"text": "a", "label": NaN}\n', "line 1 has no label"),
        wrong('{"text": "a"}\n', "line 1: there is no column 'label', only text"),
        wrong('{"sentence": "a", "label": 1}\n', "there is no column 'text', only sentence, label"),
        wrong('{"text": null, "label": 1}\n', "line 1: column 'text' holds no text but nothing"),
        wrong('{"text": ["a"], "label": 1}\n', "column 'text' holds no text"),
        wrong('{"text": "a", "label": [1]}\n', "is neither text nor a number"),
        wrong(
            '{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n', "all labels are 1, so there is nothing to learn"
        ),
        wrong("text,label\n", r"train\.csv has no rows", "train.csv"),
        wrong("text,label\na\n", "line 2 has not the 2 fields", "train.csv"),
        wrong("text,label\na,b,c\n", "line 2 has not the 2 fields", "train.csv"),
        wrong('text,label\n"a,1\n', "is no CSV", "train.csv"),
        wrong("text,label\na,\n", "line 2 has no label", "train.csv"),
        wrong('{"text": "a", "label": 1, "label": 2}\n', "line 1 has the key 'label' twice"),
        wrong('{"text": "a", "label": {"x": 1, "x": 2}}\n', "line 1 has the key 'x' twice"),
        wrong('{"text": NaN, "label": 1}\n', "line 1: column 'text' holds no text but nothing"),
        wrong('{"text": -Infinity, "label": 1}\n', "line 1: column 'text' holds no text but -inf"),
        wrong('{"text": 1e400, "label": 1}\n', "line 1: column 'text' holds no text but inf"),
        wrong('{"text": "a", "label": Infinity}\n', "line 1: label inf is neither text nor a number"),
        wrong('{"text": "a", "label": 1e400}\n', "line 1: label inf is neither text nor a number"),
        wrong(
            '{"text": "a \\ud83d b", "label": 1}\n', r"line 1: column 'text' holds \\ud83d, which is half a character"
        ),
        wrong(
            '{"text": "a", "label": "\\ude00"}\n', r"line 1: column 'label' holds \\ude00, which is half a character"
        ),
        wrong("[" * 100_000 + "\n", "line 1 is nested too deeply"),
        wrong('{"text": "a", "label": ' + "9" * 5000 + "}\n", "line 1 is no JSON"),
        wrong("text,label,label\na,1,2\n", r"train\.csv has two columns called 'label'", "train.csv"),
        wrong("text,label,,\na,1,,\n", r"train\.csv has two columns called ''", "train.csv"),
        wrong("t\0e\0,l\0\n", r"train\.csv is not UTF-8 text: the names of its columns hold zero bytes", "train.csv"),
        wrong("text,label\na\rb,1\n", "line 2 has not the 2 fields", "train.csv"),
        wrong("", r"train\.csv has no rows", "train.csv"),
        wrong("x", r"cannot tell the format; the name has to end in", "train.jsonl.gz"),
        wrong("nonsense", "is no Parquet file", "train.parquet"),
        wrong("PAR1" + "\0" * 20 + "PAR1", "is no Parquet file", "train.parquet"),
        wrong(
            "text\tlabel\n", r"cannot tell the format; the name has to end in \.jsonl, \.csv, \.parquet", "train.tsv"
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(name, content, complaint, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        load(tmp_path / name, tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl is not there"):
        load(tmp_path / "nowhere.jsonl", tmp_path / "nowhere.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match=r"folder\.jsonl is no file"):
        load(tmp_path / "folder.jsonl", tmp_path / "folder.jsonl")
    with pytest.raises(
        UserError, match=r"sst2/train\.jsonl is not there \(nor \.csv, \.parquet\): `data` is the folder"
    ):
        load_data(Recipe(model="m", task="glue/sst2", output="o", data=str(tmp_path)))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\xff", "label": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is not UTF-8 text"):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_the_line_of_bytes_that_are_no_text_is_named_wherever_it_is(tmp_path):
    for name, begin in (("rows.jsonl", b'{"text": "a"}\n'), ("rows.csv", b"text\n")):
        (tmp_path / name).write_bytes(begin * 5000 + b"\xe9\n")
        with pytest.raises(
            UserError, match=rf"{name} is not UTF-8 text: line 5001 holds a byte of no character of UTF-8"
        ):
            list(read_rows(tmp_path / name))
        (tmp_path / name).write_bytes("text,label\na,1\n".encode("utf-16"))
        with pytest.raises(UserError, match=rf"{name} is not UTF-8 text: it is UTF-16: save it as UTF-8"):
            list(read_rows(tmp_path / name))


def test_fields_of_csv_have_any_length_and_the_limit_of_the_process_stays(tmp_path):
    limit = csv.field_size_limit()
    long = "a" * 300_000
    (tmp_path / "rows.csv").write_text(f'text,label\n{long},1\n"{long}\n",2\n')
    rows = read_rows(tmp_path / "rows.csv")
    assert next(rows) == ("line 2", {"text": long, "label": "1"})
    assert csv.field_size_limit() == limit
    assert next(rows) == ("line 4", {"text": f"{long}\n", "label": "2"})
    assert csv.field_size_limit() == limit


def test_csv_of_other_programs_is_read(tmp_path):
    # an index without a name, as pandas writes it; lines that end as on old Macs; zero bytes and breaks in texts
    (tmp_path / "rows.csv").write_bytes(b',text,label\r0,"a\r\nb",1\r\r1,c\0d,2\r')
    rows = [row for _, row in read_rows(tmp_path / "rows.csv")]
    assert rows == [{"": "0", "text": "a\r\nb", "label": "1"}, {"": "1", "text": "c\0d", "label": "2"}]


def test_a_text_of_csv_is_text_to_the_letter(tmp_path):
    texts = ["nan", "NaN", "null", "007", "1.50", "True", "1e3"]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(texts)))
    assert [given[0] for given in load(tmp_path / "rows.csv", tmp_path / "rows.csv")[1].inputs] == texts


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"text": ["a", None], "label": [0, 1]}, "row 2: column 'text' holds no text but nothing"),
        ({"text": [1.0, float("nan")], "label": [0, 1]}, "row 2: column 'text' holds no text but nothing"),
        ({"text": [1.0, float("inf")], "label": [0, 1]}, "row 2: column 'text' holds no text but inf"),
        ({"text": [b"a", b"b"], "label": [0, 1]}, "row 1: column 'text' holds no text but b'a'"),
        ({"text": [["a"], ["b"]], "label": [0, 1]}, r"row 1: column 'text' holds no text but \['a'\]"),
        ({"text": ["a", "b"], "label": [0.0, float("nan")]}, "row 2 has no label: column 'label' is empty"),
    ],
)
def test_cells_of_parquet_that_are_no_text(table, complaint, tmp_path):
    parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=complaint):
        load(tmp_path / "rows.parquet", tmp_path / "rows.parquet")


def test_parquet_with_two_columns_of_one_name(tmp_path):
    columns = [pyarrow.array(["a", "b"]), pyarrow.array([0, 1]), pyarrow.array([1, 0])]
    table = pyarrow.Table.from_arrays(columns, names=["text", "label", "label"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows\.parquet has two columns called 'label'"):
        load(tmp_path / "rows.parquet", tmp_path / "rows.parquet")


def test_parquet_holds_lists_chats_dates_and_an_index(tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    frame = pd.DataFrame(
        {"text": [chat], "choices": [["x", "y"]], "day": [date(2020, 1, 2)], "label": [1]}, index=["i"]
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    row = {"text": chat, "choices": ["x", "y"], "day": date(2020, 1, 2), "label": 1}
    assert list(read_rows(tmp_path / "rows.parquet")) == [("row 1", row)]
    path = tmp_path / "rows.parquet"
    assert load(path, path, text_column="day", label_kind="choice", choice_columns="choices")[1].labels == [1]
    assert load(path, path, label_kind="generation")[1].inputs[0].answers == ("b",)


NAMES: dict[str, tuple[list, tuple[str, ...], list[int]]] = {
    "numbers are written back": (["007", "010"], ("007", "010"), [0, 1]),
    "a number and its text are one": ([1, "1", 0, "0"], (0, 1), [1, 1, 0, 0]),
    "a whole number has one text": ([1.0, 1, 0.0], (0, 1), [1, 1, 0]),
    "texts of one number are two": (["1.0", "1", "01"], ("01", "1", "1.0"), [2, 1, 0]),
    "true and its text are one": ([True, "true", False], ("false", "true"), [1, 1, 0]),
    "a minus of nothing is text": (["-0", "0"], ("-0", "0"), [0, 1]),
    "below zero and beyond any float": ([-1, 10**30], (-1, 10**30), [0, 1]),
    "digits of another script are text": (["١", "1"], ("1", "١"), [1, 0]),
    "spaces count": ([" 1", "1"], (" 1", "1"), [0, 1]),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_named_by_its_text(name, tmp_path):
    labels, classes, encoded = NAMES[name]
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in labels])
    task, train, validation = load(path, path, label_kind="classification")
    assert (task.labels, train.labels, validation.labels) == (classes, encoded, encoded)


def test_a_class_has_one_name_in_all_formats(tmp_path):
    train = write(tmp_path / "train.csv", [{"text": "a", "label": label} for label in ("1", "2")])
    for ending, labels in (("jsonl", (2, 1)), ("jsonl", (2.0, "1")), ("parquet", (2.0, 1.0)), ("csv", ("2", "1"))):
        validation = write(tmp_path / f"validation.{ending}", [{"text": "a", "label": label} for label in labels])
        assert load(train, validation, label_kind="classification")[2].labels == [1, 0]


@pytest.mark.parametrize("label", ["007", "7.0", "7e0", " 7"])
def test_a_label_is_not_matched_by_its_value(label, tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "a", "label": label} for label in (7, 10)])
    validation = write(tmp_path / "validation.jsonl", [{"text": "a", "label": label}])
    with pytest.raises(UserError, match=rf"line 1: label '{label}' is none of the training labels \(7, 10\)"):
        load(train, validation)


def test_finished_runs_of_earlier_versions_still_know_their_labels(tmp_path):
    path = write(tmp_path / "rows.csv", [{"text": "a", "label": label} for label in ("007", "010", "7.0")])
    recipe = Recipe(model="m", task="file", output="o", train=str(path), validation=str(path))
    task = Task("file", ("text",), labels=(7, 10))
    assert load_validation(recipe, task).labels == [0, 1, 0]


def test_every_spelling_of_a_number_is_a_number_in_regression(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,007\na,1e1\na,-.5\n")
    assert load(path, path, label_kind="regression")[1].labels == [7.0, 10.0, -0.5]
    path.write_text("text,label\na,1\na,1.0\n")
    with pytest.raises(UserError, match="all labels are '1', so there is nothing to learn"):
        load(path, path, label_kind="regression")


def choosing(label, choices):
    return [{"text": "a", "label": label, "c": choices}]


@pytest.mark.parametrize(
    ("label", "choices", "right"),
    [(1, ["1", "2"], 1), ("2", ["1", "2"], 1), ("x", ["y", "x"], 1), ([2], [1, 2, 3], 1), ("1", [3, True], 1)],
)
def test_the_right_choice(label, choices, right, tmp_path):
    path = write(tmp_path / "rows.jsonl", choosing(label, choices))
    assert load(path, path, label_kind="choice", choice_columns="c")[1].labels == [right]


@pytest.mark.parametrize(
    ("label", "choices", "complaint"),
    [
        ("1", ["1", "2"], "label '1' can be a choice's number, from 0 on, and a choice itself, which is another one"),
        ("01", ["a", "b"], "label '01' names none of the 2 choices"),
        (True, ["a", "b"], "label True names none of the 2 choices"),
        (0, [["a"], ["b"]], r"column 'c' holds no text but \['a'\]"),
        (0, ["a", "\ud83d"], "column 'c' holds .*, which is half a character"),
        (0, ["1", 1], "a choice needs two or more"),
    ],
)
def test_choices_that_cannot_be_meant(label, choices, complaint, tmp_path):
    path = write(tmp_path / "rows.jsonl", choosing(label, choices))
    with pytest.raises(UserError, match=complaint):
        load(path, path, label_kind="choice", choice_columns="c")


def test_half_a_character_in_a_chat(tmp_path):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud83d"}]
    path = write(tmp_path / "rows.jsonl", [{"text": chat, "label": ""}])
    with pytest.raises(UserError, match=r"line 1: column 'text' holds .*, which is half a character"):
        load(path, path, label_kind="generation")


def test_a_whole_emoji_in_two_escapes_is_text(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "\U0001f600", "label": n} for n in (0, 1)])
    assert "\\ud83d\\ude00" in path.read_text()
    assert load(path, path)[1].inputs[0] == ("\U0001f600",)


def test_byte_order_mark_is_no_part_of_a_column(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,1\n", "utf-8-sig")
    assert list(read_rows(tmp_path / "rows.csv")) == [("line 2", {"text": "a", "label": "1"})]


def test_label_that_is_only_in_validation(tmp_path):
    train = write(tmp_path / "train.jsonl", ROWS)
    validation = write(tmp_path / "validation.jsonl", [*ROWS, {"text": "x", "label": "mixed"}])
    with pytest.raises(UserError, match=r"validation\.jsonl, line 4: label 'mixed' is none of the training labels"):
        load(train, validation)


def test_regression_needs_numbers_in_validation(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "x", "label": 0.5}, {"text": "x", "label": 1.5}])
    validation = write(tmp_path / "validation.jsonl", [{"text": "x", "label": "high"}])
    with pytest.raises(UserError, match="line 1: label 'high' is no number, which regression needs"):
        load(train, validation)


def test_draw_of_one_label_only_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match="`max_train_examples` 1 draws only rows of label"):
        load(path, path, max_train_examples=1)


def test_json_lines_of_other_programs_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\ufeff" + json.dumps({"text": "a", "label": 1}) + "\r\n\r\n", "utf-8")
    assert [row for _, row in read_rows(tmp_path / "rows.jsonl")] == [{"text": "a", "label": 1}]


def test_one_validation_row_of_numbers_has_no_correlation(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": number + 0.5} for number in range(3)])
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "label": 0.5}])
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    recipe = Recipe(model="m", task="file", output="o", **files)
    with pytest.raises(UserError, match=r"validation\.jsonl, line 1 is the only validation row, .*: add rows"):
        load_data(recipe)
    task = Task("file", ("text",), kind="regression")
    with pytest.raises(UserError, match="is the only validation row"):
        load_validation(recipe, task)
