"""The tasks of GLUE (Wang et al. 2018) and SuperGLUE (Wang et al. 2019), in the fields of the hub's configs.

Metrics are the paper's, the primary one first. The prompts, for causal models that answer without a head, are ours.
"""

from collections.abc import Mapping
from typing import Any

from ttlora.finetune.tasks import Task

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
    )
}
