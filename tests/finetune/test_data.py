import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_jsonl

from ttlora.errors import UserError
from ttlora.finetune.data import load_data, load_validation
from ttlora.finetune.files import read_rows
from ttlora.finetune.recipe import Recipe

ROWS = [{"text": 'a, "b"', "label": "pos"}, {"text": "c\nd", "label": "neg"}, {"text": "", "label": "pos"}]


def load(train, validation, **keys):
    paths = {}
    for name, content in (("train", train), ("validation", validation)):
        paths[name] = str(content)
    return load_data(Recipe(model="m", task="file", output="o", **paths, **keys))


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
    assert train == validation
    assert train.inputs == [('a, "b"',), ("c\nd",), ("",)]
    assert task.labels == ("neg", "pos")
    assert train.labels == [1, 0, 1]


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
    with pytest.raises(UserError, match="say --label-kind classification or --label-kind regression"):
        load(stars, stars)
    assert load(stars, stars, label_kind="regression")[1].labels == [1.0, 2.0, 5.0]
    assert load(stars, stars, label_kind="classification")[0].labels == (1, 2, 5)
    many = write(tmp_path / "many.jsonl", [{"text": "a", "label": label} for label in range(200)])
    with pytest.raises(UserError, match="say --label-kind"):
        load(many, many)


def test_booleans_and_mixed_labels_are_classes(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in (True, False, "unsure", 3)])
    assert load(path, path)[0].labels == ("3", "false", "true", "unsure")


def test_two_texts_and_other_column_names(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "a", "p": 7, "y": "x"}, {"q": "c", "p": "d", "y": "z"}])
    _, train, _ = load(path, path, text_column="q", text_pair_column="p", label_column="y")
    assert train.inputs == [("a", "7"), ("c", "d")]


def test_named_task_comes_from_its_folder(data):
    recipe = Recipe(model="m", task="glue/sst2", output="o", data=str(data))
    task, train, validation = load_data(recipe)
    assert (len(train), len(validation), task.labels) == (48, 24, (0, 1))
    assert load_validation(recipe, task) == validation


def test_named_task_in_csv(tmp_path):
    (tmp_path / "rte").mkdir()
    for split in ("train", "validation"):
        write(tmp_path / "rte" / f"{split}.csv", [{"sentence1": "a", "sentence2": "b", "label": n} for n in (0, 1)])
    _, train, _ = load_data(Recipe(model="m", task="glue/rte", output="o", data=str(tmp_path)))
    assert train.inputs == [("a", "b"), ("a", "b")]


def test_drawn_rows_depend_on_the_seed_alone(data):
    def texts(count, seed):
        recipe = Recipe(model="m", task="glue/sst2", output="o", data=str(data), max_train_examples=count, seed=seed)
        return load_data(recipe)[1].inputs

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
        wrong("nonsense", "is no Parquet file", "train.parquet"),
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
        UserError, match=r"sst2/train\.jsonl is not there \(nor \.csv, \.parquet\): --data is the folder"
    ):
        load_data(Recipe(model="m", task="glue/sst2", output="o", data=str(tmp_path)))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "\xff", "label": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is not UTF-8 text"):
        list(read_rows(tmp_path / "rows.jsonl"))


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
    with pytest.raises(UserError, match="--max-train-examples 1 draws only rows of label"):
        load(path, path, max_train_examples=1)


def test_json_lines_of_other_programs_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\ufeff" + json.dumps({"text": "a", "label": 1}) + "\r\n\r\n", "utf-8")
    assert [row for _, row in read_rows(tmp_path / "rows.jsonl")] == [{"text": "a", "label": 1}]
