"""The tasks that a recipe can name: those of GLUE (Wang et al. 2018) and SuperGLUE (Wang et al. 2019), metamathqa, and
``file``.

The columns are those of the data sets on the hub. Metrics are the paper's, the primary one first. The prompts, for
causal models that answer without a head, are ours; that of metamathqa is PEFT's.
"""

import string
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ttlora.errors import UserError
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import FILE_METRICS, LANGUAGE_KINDS, Task, columns_of

FILE_KEYS = ("train", "validation", "text_column", "text_pair_column", "label_column", "label_kind", "choice_columns")
YES = {"0": "No", "1": "Yes"}


def _glue(name: str, *texts: str, folder: str = "", **options: Any) -> Task:
    return Task(f"glue/{name}", texts, hub=("nyu-mll/glue", folder or name), **options)


def _superglue(name: str, *texts: str, **options: Any) -> Task:
    return Task(f"superglue/{name}", texts, hub=("aps/super_glue", name), **options)


def _entailment(premise: str, hypothesis: str) -> str:
    return f'{{{premise}}}\nDoes it follow that "{{{hypothesis}}}"? Yes or No?\nAnswer:'


MNLI: dict[str, Any] = {
    "prompt": '{premise}\nDoes it follow that "{hypothesis}"? Yes, No, or Maybe?\nAnswer:',
    "answers": {"0": "Yes", "1": "Maybe", "2": "No"},
}

NAMED: Mapping[str, Task] = {
    task.name: task
    for task in (
        _glue(
            "cola",
            "sentence",
            metrics=("matthews", "accuracy"),
            prompt="{sentence}\nIs this sentence grammatical? Yes or No?\nAnswer:",
            answers=YES,
        ),
        _glue("mnli", "premise", "hypothesis", validation="validation_matched", **MNLI),
        _glue("mnli-mismatched", "premise", "hypothesis", folder="mnli", validation="validation_mismatched", **MNLI),
        _glue(
            "mrpc",
            "sentence1",
            "sentence2",
            metrics=("f1", "accuracy"),
            prompt="{sentence1}\n{sentence2}\nDo both sentences say the same? Yes or No?\nAnswer:",
            answers=YES,
        ),
        _glue(
            "qnli",
            "question",
            "sentence",
            prompt="{sentence}\nDoes this answer the question: {question} Yes or No?\nAnswer:",
            answers={"0": "Yes", "1": "No"},
        ),
        _glue(
            "qqp",
            "question1",
            "question2",
            metrics=("f1", "accuracy"),
            prompt="{question1}\n{question2}\nAre both questions the same? Yes or No?\nAnswer:",
            answers=YES,
        ),
        _glue(
            "rte",
            "sentence1",
            "sentence2",
            prompt=_entailment("sentence1", "sentence2"),
            answers={"0": "Yes", "1": "No"},
        ),
        _glue("sst2", "sentence", prompt="{sentence}\nAll in all, it was", answers={"0": "terrible", "1": "great"}),
        _glue("stsb", "sentence1", "sentence2", metrics=("spearman", "pearson"), kind="regression"),
        _glue("wnli", "sentence1", "sentence2", prompt=_entailment("sentence1", "sentence2"), answers=YES),
        _superglue(
            "boolq",
            "question",
            "passage",
            prompt="{passage}\nQuestion: {question}? Yes or No?\nAnswer:",
            answers=YES,
        ),
        _superglue(
            "cb",
            "premise",
            "hypothesis",
            metrics=("f1_macro", "accuracy"),
            prompt='Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\nAnswer:',
            answers={"0": "Yes", "1": "No", "2": "Maybe"},
        ),
        _superglue(
            "copa",
            "{premise} {question}",
            kind="choice",
            choices=("choice1", "choice2"),
            wording={"question": {"cause": "This happened because", "effect": "As a result,"}},
            prompt="{premise} {question}",
        ),
        _superglue(
            "multirc",
            "paragraph",
            "{question} {answer}",
            metrics=("f1", "accuracy"),
            prompt="{paragraph}\nQuestion: {question}\nIs the answer {answer}? Yes or No?\nAnswer:",
            answers=YES,
        ),
        # the entity that the placeholder stands for; of the spellings that are right, the first is kept
        _superglue(
            "record",
            "{passage} {query}",
            kind="choice",
            choices=("entities",),
            label_column="answers",
            prompt="{passage}\n{query}\nWho or what is @placeholder? Answer:",
        ),
        _superglue(
            "rte", "premise", "hypothesis", prompt=_entailment("premise", "hypothesis"), answers={"0": "Yes", "1": "No"}
        ),
        _superglue(
            "wic",
            "{word}: {sentence1}",
            "{word}: {sentence2}",
            prompt='{sentence1}\n{sentence2}\nDoes "{word}" mean the same in both sentences? Yes or No?\nAnswer:',
            answers=YES,
        ),
        _superglue(
            "wsc",
            "{text}",
            '"{span2_text}" refers to {span1_text}',
            metrics=("f1", "accuracy"),
            prompt='{text}\nIn this sentence, does "{span2_text}" refer to {span1_text}? Yes or No?\nAnswer:',
            answers=YES,
        ),
        # as PEFT compares its methods: trained on MetaMathQA (Yu et al. 2023), measured on GSM8K (Cobbe et al. 2021)
        Task(
            "metamathqa",
            ("query",),
            "response",
            "generation",
            ("last_number", "perplexity"),
            hub=("meta-math/MetaMathQA", "default"),
            prompt="Question: {query} Think step by step.\nAnswer:",
            validation="test",
            validation_hub=("openai/gsm8k", "main"),
            validation_columns={"question": "query", "answer": "response"},
        ),
    )
}


def find_task(recipe: Recipe) -> Task:
    """The task that a recipe names, with the recipe's columns if it is ``file``.

    Raises:
        UserError: There is no such task, or the recipe's keys do not go with it.
    """
    _require_uses(recipe)
    if recipe.task == "file":
        return _file_task(recipe)
    if recipe.task not in NAMED:
        close = get_close_matches(recipe.task, [*NAMED, "file"], n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no task is called {recipe.task!r}: {hint}there are {', '.join(NAMED)} and file")
    for name in (*FILE_KEYS, "prompt", "answers"):
        if getattr(recipe, name) is not None:
            raise UserError(f"`{name}` goes with `task` file; {recipe.task} has its own")
    task = NAMED[recipe.task]
    if recipe.scoring == "prompt" and task.prompt is None:
        raise UserError(f"`scoring` prompt: {recipe.task} has numbers as labels, which no prompt can ask for")
    return task


def _require_uses(recipe: Recipe) -> None:
    """Refuse settings of language models for other tasks."""
    kind = NAMED[recipe.task].kind if recipe.task in NAMED else recipe.label_kind
    uses = {"packing": ("generation", "text"), "loss_on": ("generation",), "beta": ("preference",)}
    for name, kinds in uses.items():
        if getattr(recipe, name) and kind not in kinds:
            raise UserError(f"`{name}` goes with `label_kind` {' or '.join(kinds)}")


def _file_task(recipe: Recipe) -> Task:
    if recipe.data is not None:
        raise UserError("`data` goes with a named task; `task` file takes `train` and `validation`")
    for name in ("train", "validation"):
        if getattr(recipe, name) is None:
            raise UserError(f"`task` file needs `{name}`, a JSONL, CSV or Parquet file")
    kind = recipe.label_kind
    texts = (
        recipe.text_column or ("prompt" if kind == "preference" else "text"),
        *([recipe.text_pair_column] if recipe.text_pair_column else []),
    )
    label_column = recipe.label_column or "label"
    choices = tuple(recipe.choice_columns or (("chosen", "rejected") if kind == "preference" else ()))
    if kind != "preference" and (kind == "choice") != bool(choices):
        raise UserError("`choice_columns` and `label_kind` choice go together: one is missing")
    if kind == "preference" and len(choices) != 2:
        raise UserError(
            f"`choice_columns` is {','.join(choices)}: `label_kind` preference has two, the preferred answer first"
        )
    for name, text in zip(("text_column", "text_pair_column"), texts, strict=False):
        _require_template(name, text)
    used = [*texts, *choices, *([] if kind in ("text", "preference") else [label_column])]
    if len(set(used)) < len(used):
        raise UserError(f"text, choice and label columns have to differ: they are {', '.join(used)}")
    writes = kind in LANGUAGE_KINDS
    if (kind == "choice" or writes) and len(texts) > 1:
        raise UserError(f"`text_pair_column` {texts[1]} does not go with `label_kind` {kind}: use one text column")
    if recipe.scoring == "prompt" and kind == "regression":
        raise UserError("`scoring` prompt: numbers are labels that no prompt can ask for")
    causal = recipe.scoring == "prompt" or writes
    for name in ("prompt", "answers"):
        allowed = causal and kind != "text" and (name == "prompt" or not (writes or kind == "choice"))
        if getattr(recipe, name) is not None and not allowed:
            raise UserError(f"`{name}` has no use here: it goes with `scoring` prompt")
    return Task(
        "file",
        texts,
        label_column,
        kind,
        FILE_METRICS[kind or "classification"],
        choices=choices,
        prompt=_file_prompt(recipe, texts) if causal else None,
        answers=dict(recipe.answers) if isinstance(recipe.answers, dict) else {},
    )


def _file_prompt(recipe: Recipe, texts: tuple[str, ...]) -> str:
    """The prompt that the recipe names, or the texts with "Answer:" where labels are to follow."""
    if recipe.prompt is not None:
        _require_template("prompt", recipe.prompt)
        if recipe.prompt not in columns_of(recipe.prompt):
            return recipe.prompt
        raise UserError(f'`prompt` {recipe.prompt!r} names no column in braces, as in "{{{texts[0]}}} Answer:"')
    together = "\n".join(f"{{{column}}}" for column in texts)
    is_open = recipe.label_kind in ("choice", *LANGUAGE_KINDS)
    return together if is_open else f"{together}\nAnswer:"


def _require_template(name: str, template: str) -> None:
    try:
        columns_of(template)
    except ValueError as error:
        raise UserError(f"`{name}`: {error}") from None
    for _, column, form, conversion in string.Formatter().parse(template):
        if form or conversion:
            raise UserError(f"`{name}`: {template!r} formats {column!r}, and a column is always written as it is")
