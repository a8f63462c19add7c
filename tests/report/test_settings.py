import pytest

from tests.report.records import write_run
from ttlora.report.comparison import compare
from ttlora.report.runs import find_runs
from ttlora.report.settings import common_settings, file_names, model_names, value_text


@pytest.fixture
def labels(tmp_path):
    """The rows' labels with the number of their runs, for runs that differ from each other in what is given."""

    def call(*changes):
        for index, change in enumerate(changes):
            write_run(tmp_path, str(index), **change)
        (comparison,) = compare(find_runs([tmp_path]).runs)
        return {row.label: len(row.runs) for row in comparison.rows}

    return call


def test_two_ranks_are_two_rows(labels):
    lora = {"method": "lora"}
    assert labels(
        {**lora, "r": 8, "adapter_parameters": 800}, {**lora, "r": 4, "adapter_parameters": 400, "alpha": 16.0}
    ) == {"LoRA r=8": 1, "LoRA r=4": 1}


def test_seeds_are_one_row(labels):
    assert labels({"seed": 0}, {"seed": 1, "output": "elsewhere", "threads": 2}) == {"TT-LoRA": 2}


def test_a_setting_that_varies_from_task_to_task_alone_leaves_a_row_together(labels):
    assert labels({"task": "glue/sst2"}, {"task": "glue/rte", "learning_rate": 5e-4}) == {"TT-LoRA": 2}


def test_a_setting_that_varies_within_a_task_splits(labels):
    assert labels(
        {"task": "glue/sst2"},
        {"task": "glue/rte"},
        {"task": "glue/sst2", "learning_rate": 5e-4, "seed": 1},
    ) == {"TT-LoRA learning_rate=0.0005": 1, "TT-LoRA learning_rate=0.001": 2}


def test_labels_name_as_little_as_tells_rows_apart(labels):
    first = {"r": 5, "alpha": 1.0, "learning_rate": 1e-3}
    second = {"r": 5, "alpha": 4.0, "learning_rate": 1e-4}
    assert set(labels(first, second)) == {"TT-LoRA r=5 alpha=1", "TT-LoRA r=5 alpha=4"}


def test_a_methods_own_settings_split_too(labels):
    assert set(labels(*({"method": "prompt", "settings": {"tokens": n, "kind": "x"}} for n in (5, 20)))) == {
        "Prompt tokens=5",
        "Prompt tokens=20",
    }


def test_a_setting_of_the_config_that_is_a_recipes_key_too_is_not_lost(labels):
    assert set(labels(*({"r": 5, "settings": {"r": n}} for n in (6, 7)))) == {
        "TT-LoRA r=5 settings.r=6",
        "TT-LoRA r=5 settings.r=7",
    }


def test_sizes_tell_apart_what_recipes_do_not(labels):
    assert labels({"adapter_parameters": 1000}, {"adapter_parameters": 2000, "seed": 1}) == {
        "TT-LoRA (2,000)": 1,
        "TT-LoRA (1,000)": 1,
    }


def test_rows_whose_labels_are_cut_to_the_same_keep_apart(labels):
    text = "y" * 90
    long = [{"method": "prompt", "settings": {"text": text + end}} for end in "ab"]
    found = labels(*long, *({"method": "x" * 90 + end} for end in "ab"))
    assert len(found) == sum(found.values()) == 4


def test_values_as_text():
    values = (0.123456789, None, True, 0.0001, 16.0, 5, [16, 24], {"q": [4, 4], "v": "a"}, "auto")
    texts = ("0.123456789", "null", "true", "0.0001", "16", "5", "16,24", "q=4,4 v=a", "auto")
    assert tuple(map(value_text, values)) == texts


def test_common_settings(tmp_path):
    write_run(tmp_path, "a", r=5, alpha=1.0)
    write_run(tmp_path, "b", r=5, alpha=2.0, shape=[4, 4])
    settings = common_settings(find_runs([tmp_path]).runs)
    assert settings["r"] == "5"
    assert not {"alpha", "shape", "output", "seed", "model"} & settings.keys()


def test_models_and_files_have_short_names_where_these_are_unlike():
    assert model_names(["/a/bert", "org/bert", "/b/gpt"]) == {
        "/a/bert": "bert",
        "org/bert": "org/bert",
        "/b/gpt": "gpt",
    }
    assert model_names(["/a/model", "/b/model"]) == {"/a/model": "a/model", "/b/model": "b/model"}
    assert model_names(["/a/bert", "/b/bert"]) == {"/a/bert": "/a/bert", "/b/bert": "/b/bert"}
    assert file_names(["/x/reviews/validation.jsonl", "/x/mails.csv"]) == {
        "/x/reviews/validation.jsonl": "reviews",
        "/x/mails.csv": "mails",
    }
