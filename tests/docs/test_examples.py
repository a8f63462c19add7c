"""The examples in the docstrings of what `import ttlora` gives."""

import doctest
import inspect

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

import ttlora
from tests.conftest import sentiment_rows, write_jsonl

FUNCTIONS = [name for name in ttlora.__all__ if inspect.isfunction(getattr(ttlora, name))]


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    """What the examples find in the current folder."""
    path = tmp_path_factory.mktemp("examples")
    (path / "model").symlink_to(bert)
    for name, count, seed in (("train", 32, 1), ("validation", 16, 2)):
        rows = [{"text": row["sentence"], "label": row["label"]} for row in sentiment_rows(count, seed)]
        write_jsonl(path / f"{name}.jsonl", rows)
    files = {"train": str(path / "train.jsonl"), "validation": str(path / "validation.jsonl")}
    recipe = ttlora.Recipe(model=str(path / "model"), task="file", output=str(path / "run"), epochs=1, **files)
    ttlora.train(recipe, quiet=True)
    configs = {"lora": LoraConfig(target_modules=["query"]), "adapter": ttlora.TTLoraConfig(init_weights=False)}
    for name, config in configs.items():
        get_peft_model(AutoModel.from_pretrained(bert), config).save_pretrained(path / name)
    return path


def test_every_function_has_an_example():
    assert FUNCTIONS
    for name in FUNCTIONS:
        assert doctest.DocTestFinder().find(getattr(ttlora, name), name, globs={})[0].examples, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    [test] = doctest.DocTestFinder().find(getattr(ttlora, name), name, globs={})
    told = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert results.failed == 0, "".join(told)
