import pytest

from tests.report.records import write_run
from ttlora.report.answer import answer
from ttlora.report.comparison import compare
from ttlora.report.runs import find_runs


@pytest.fixture
def ask(tmp_path):
    """The answer for scores a method, one for each seed."""

    def call(task="glue/sst2", seconds=None, **scores):
        for name, values in scores.items():
            method = name.replace("tt", "tt-lora")
            for seed, score in enumerate(values):
                step = (seconds or {}).get(name, 0.5)
                write_run(tmp_path, f"{name}{seed}", score, method=method, seed=seed, task=task, seconds_per_step=step)
        (comparison,) = compare(find_runs([tmp_path]).runs)
        return answer(comparison)

    return call


def test_where_tt_lora_loses_it_says_so(ask):
    found = ask(tt=[0.80, 0.82], lora=[0.90, 0.92], bitfit=[0.95, 0.95], seconds={"tt": 0.4})
    assert found.good == (
        "TT-LoRA scores 81.00 ± 1.41 on SST-2 (accuracy), 2 seeds: number 3 of 3; "
        "10.00 points below LoRA (91.00 ± 1.41), beyond two standard errors (2.83); "
        "14.00 points below BitFit (95.00 ± 0.00), beyond two standard errors (2.00)."
    )
    assert found.small == (
        "The adapter of TT-LoRA has 16,320 parameters, 31.9 KiB in 16 bit (the head has 770 more): "
        "4.5× smaller than that of LoRA (73,728)."
    )
    assert found.fast == (
        "A training step of TT-LoRA takes 0.400 s, 20 % less than one of LoRA (0.500 s); "
        "peak memory is 1.00 GiB against 1.00 GiB."
    )


def test_where_it_wins(ask):
    found = ask(tt=[0.9], lora=[0.8], seconds={"lora": 0.4})
    assert "best of 2; 10.00 points above LoRA (80.00) (one seed: no telling how much of it is chance)." in found.good
    assert "25 % more than one of LoRA" in found.fast


def test_what_seeds_cannot_tell(ask):
    found = ask(tt=[0.80, 0.84], lora=[0.81, 0.85])
    assert "1.00 points below LoRA (83.00 ± 2.83), within two standard errors (5.66)" in found.good


def test_level(ask):
    assert "best of 2; level with LoRA" in ask(tt=[0.8], lora=[0.8]).good


def test_alone(ask):
    found = ask(tt=[0.8])
    assert found.good.endswith("there is no other method to compare it with.")
    assert found.fast == "A training step of TT-LoRA takes 0.500 s; peak memory is 1.00 GiB."


def test_without_tt_lora(ask):
    found = ask(lora=[0.8], bitfit=[0.9])
    assert found.good.startswith("There is no run of TT-LoRA. BitFit scores 90.00 ")
    assert "1.4× larger than that of LoRA" in found.small


def test_without_lora(ask):
    found = ask(tt=[0.8], head=[0.7])
    assert "10.00 points above Head alone" in found.good
    assert found.small.endswith("(the head has 770 more).")


def test_an_adapter_of_nothing(ask):
    assert ask(head=[0.7]).small == "Head alone trains no adapter; the head has 770 more."


def test_without_a_common_task(ask):
    ask(tt=[0.8])
    found = ask(task="glue/rte", lora=[0.7])
    assert found.good.startswith("No task was run with all methods")
    assert "nothing to compare it with" in found.fast


def test_smaller_ones_are_named(ask, tmp_path):
    write_run(tmp_path, "prompt", 0.6, method="prompt", adapter_parameters=768)
    found = ask(tt=[0.8], lora=[0.8])
    assert found.small.endswith("; smaller still: Prompt (768).")


def test_steps_of_unlike_batches_are_not_alike(ask, tmp_path):
    write_run(tmp_path, "other", method="lora", batch_size=64)
    assert "though at another batch size" in ask(tt=[0.8]).fast
