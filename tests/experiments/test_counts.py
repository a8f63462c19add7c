import pytest

from ttlora.errors import UserError
from ttlora.experiments.counts import count_all
from ttlora.experiments.printed import agrees, find_printed


def test_counts_of_the_paper_are_those_of_adapted_models(plan):
    counts = count_all(
        plan(
            models="[deberta-base]",
            tasks="[glue/rte, glue/sst2]",
            methods="[{method: tt-lora, targets: [in_proj], shape: [64, 36, 12, 64], r: 5}, {method: lora, r: 8}, "
            "{method: lora, r: 4}, full]",
            seeds="[0, 1]",
        )
    )
    head = 768 * 768 + 768 + 2 * 768 + 2
    assert [(count.method, count.adapter, count.head, count.lora) for count in counts] == [
        ("tt-lora", 22_080, head, 294_912),
        ("lora r=8", 294_912, head, 294_912),
        ("lora r=4", 147_456, head, 294_912),
        ("full", 139_193_858 - head, head, 294_912),
    ]
    assert {count.full for count in counts} == {139_193_858}
    assert [count.printed.text for count in counts] == ["0.02M", "0.30M", "0.15M", "139.19M"]


def test_counts_without_a_head(plan):
    (count,) = count_all(
        plan(
            models="[meta-llama/Llama-2-7b-hf]",
            tasks="[superglue/cb]",
            methods="[{method: tt-lora, targets: [q_proj, v_proj], shape: [16, 16, 16, 16, 16, 16], r: 5}]",
            scoring="prompt",
        )
    )
    assert (count.adapter, count.head, count.full, count.lora) == (112_640, 0, 6_738_415_616, 4_194_304)


def test_the_head_is_as_the_task_wants_it(plan):
    heads = {
        task: count_all(plan(models="[roberta-base]", tasks=f"[{task}]", methods="[head]"))[0].head
        for task in ("glue/mnli", "glue/sst2", "glue/stsb")
    }
    dense = 768 * 768 + 768
    assert heads == {"glue/mnli": dense + 3 * 769, "glue/sst2": dense + 2 * 769, "glue/stsb": dense + 769}


def test_what_does_not_fit_is_one_line(plan):
    with pytest.raises(UserError) as error:
        count_all(plan(models="[roberta-base]", methods="[{method: tt-lora, shape: [64, 36, 12, 64]}]"))
    assert str(error.value).startswith("tt-lora on roberta-base: ")
    assert "1,769,472" in str(error.value)
    with pytest.raises(UserError, match="model deberta-base is a deberta, of which there is no causal model"):
        count_all(plan(models="[deberta-base]", methods="[lora]", scoring="prompt"))


def test_printed_counts_are_found_by_model_method_and_rank():
    assert find_printed("microsoft/deberta-base", "lora", 4).text == "0.15M"
    assert find_printed("deberta-base", "lora", 8).text == "0.30M"
    assert find_printed("deberta-base", "lora", 16) is None
    assert find_printed("bert", "lora", 8) is None


@pytest.mark.parametrize(
    ("count", "printed", "same"),
    [(22_080, "0.02M", True), (294_912, "0.30M", False), (124_000_000, "124M", True), (124_645_632, "124M", False)],
)
def test_agreement_is_at_the_printed_digits(count, printed, same):
    assert agrees(count, printed) == same
