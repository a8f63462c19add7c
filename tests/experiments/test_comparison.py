import pytest

from ttlora.errors import UserError
from ttlora.experiments.comparison import Comparison, find_config, shipped_recipes


def test_entries_are_names_or_keys(write):
    comparison = Comparison.read(
        write(
            models="[dir/bert, {model: gpt2, batch_size: 8}]",
            tasks="[glue/sst2, {task: glue/rte, epochs: 10}]",
            methods="[tt-lora, {method: lora, r: 8, label: big, seeds: [3, 4]}]",
            seeds="[0, 1]",
            epochs="3",
            learning_rate="1e-3",
            threads="2",
        )
    )
    assert [(entry.name, entry.label, entry.keys) for entry in comparison.models] == [
        ("dir/bert", "bert", {}),
        ("gpt2", "gpt2", {"batch_size": 8}),
    ]
    assert comparison.tasks[1].keys == {"epochs": 10}
    assert [(entry.label, entry.seeds) for entry in comparison.methods] == [("tt-lora", None), ("big", (3, 4))]
    assert (comparison.seeds, comparison.threads) == ((0, 1), 2)
    assert comparison.shared == {"epochs": 3, "learning_rate": 0.001}


def test_methods_of_one_name_are_labelled_by_what_differs(write):
    methods = (
        "[{method: lora, r: 8, alpha: 16}, {method: lora, r: 4, alpha: 16}, {method: lora, alpha: 16}, "
        "{method: tt-lora, shape: [4, 8, 8, 4]}]"
    )
    labels = [entry.label for entry in Comparison.read(write(methods=methods)).methods]
    assert labels == ["lora r=8", "lora r=4", "lora", "tt-lora"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"modles": "[x]"}, "c.yaml: unknown key 'modles': did you mean models?"),
        ({"epoch": "3"}, "c.yaml: unknown key 'epoch': did you mean epochs?"),
        ({"seed": "3"}, "c.yaml: unknown key 'seed': did you mean seeds?"),
        ({"output": "here"}, "c.yaml: unknown key 'output': give the comparison's folder as `output`"),
        (
            {"methods": "[lora, {method: lora, learning_rat: 1}]"},
            "methods entry 2: unknown key 'learning_rat': did you",
        ),
        ({"tasks": "[{task: glue/rte, seeds: [1]}]"}, "tasks entry 1: unknown key 'seeds'"),
        ({"methods": "[{r: 8}]"}, "methods entry 1: method is missing, and has to be text"),
        ({"methods": "[{method: lora, label: 8}]"}, "methods entry 1: label is 8, and has to be text"),
        ({"methods": "[7]"}, "methods entry 1 is 7, and has to be a name, or keys with method among them"),
        ({"models": "[]"}, "c.yaml: models is [], and has to be a list of at least one"),
        ({"models": "bert"}, "c.yaml: models is 'bert', and has to be a list of at least one"),
        ({"seeds": "[1, 1]"}, "c.yaml: seeds is [1, 1], and has to be a list of different whole numbers"),
        ({"seeds": "3"}, "c.yaml: seeds is 3, and has to be a list"),
        ({"seeds": "[-1]"}, "c.yaml: seed is -1, and has to be from 0"),
        ({"threads": "0"}, "c.yaml: threads is 0, and has to be at least 1"),
        ({"threads": "2000"}, "c.yaml: threads is 2000, and has to be at most 1,024"),
        ({"threads": "yes"}, "c.yaml: threads is True, and has to be a whole number"),
        ({"text_column": "007"}, "cannot be read as YAML: YAML takes 007 for 7: write that, or text in quotes"),
        ({"text_column": "no"}, "c.yaml: text_column is False, and has to be text: put text in quotes"),
        ({"answers": "{0: no, 1: yes}"}, "c.yaml: answers of 0 is False, and has to be text: put text in quotes"),
        ({"methods": "[{method: no}]"}, "methods entry 1: method is False, and has to be text: put text in quotes"),
        ({"tasks": "[2020-01-01]"}, "tasks entry 1 is datetime.date(2020, 1, 1), and has to be a name, or"),
        ({"epochs": "3\nepochs: 4"}, "cannot be read as YAML: key 'epochs' is there twice"),
        ({"epochs": "many"}, "c.yaml: epochs is 'many', and has to be a whole number"),
        ({"epochs": "yes"}, "c.yaml: epochs is True, and has to be a whole number"),
        ({"epochs": ""}, "c.yaml: epochs has no value: give one or leave it out"),
        ({"epochs": "0"}, "c.yaml: epochs is 0, and has to be at least 1"),
        ({"learning_rate": "fast"}, "c.yaml: learning_rate is 'fast', and has to be a number"),
        ({"scoring": "words"}, "c.yaml: scoring is 'words', and has to be head or prompt"),
        ({"methods": "[{method: lora, dropout: 2}]"}, "methods entry 1: dropout is 2, and has to be at least 0"),
        ({"methods": "[lora, lora]"}, "methods entry 2 is called 'lora', as is"),
        ({"models": "[a/bert, b/bert]"}, "models entry 2 is called 'bert', as is"),
    ],
)
def test_mistakes_are_one_line_with_the_place(keys, message, write):
    with pytest.raises(UserError) as error:
        Comparison.read(write(**keys))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [", "cannot be read as YAML: "),
        ("- models", "holds no keys with values"),
        ("", "holds no keys with values"),
        ("1: 2", "holds no keys with values"),
        ("epochs: 1\nepochs: 2", "key 'epochs' is there twice"),
        ("models: [{model: a, r: 1, r: 2}]", "key 'r' is there twice"),
        ("models: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[" * 400, "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_files_that_hold_no_comparison(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        Comparison.read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_shipped_recipes_are_found_by_name_where_there_is_no_such_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("deberta-glue") == shipped_recipes()["deberta-glue"]
    (tmp_path / "deberta-glue").write_text("models: []")
    assert str(find_config("deberta-glue")) == "deberta-glue"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("deberta-gleu", "`config` deberta-gleu is no file, and no recipe that is shipped: did you mean deberta-glue?"),
        ("/nowhere/c.yaml", "name a YAML file, or one of deberta-glue, llama2-superglue"),
        (".", "`config` . is no file"),
    ],
)
def test_no_such_config(config, message):
    with pytest.raises(UserError) as error:
        find_config(config)
    assert message in str(error.value)
