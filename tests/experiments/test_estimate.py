import pytest

from ttlora.experiments.estimate import Estimate, estimate
from ttlora.finetune.progress import format_duration


@pytest.fixture
def by_title(plan):
    runs = plan(models="[a, b]", tasks="[glue/sst2, glue/rte]", methods="[lora, tt-lora]", seeds="[0, 1]")
    return {run.title: run.likeness for run in runs}


def test_a_run_takes_as_long_as_those_most_like_it(by_title):
    done = [
        (by_title["a glue/sst2 lora seed 0"], 100.0),
        (by_title["a glue/sst2 tt-lora seed 0"], 40.0),
        (by_title["a glue/rte lora seed 0"], 10.0),
    ]

    def seconds(title: str) -> float:
        return estimate(done, [by_title[title]], 1).seconds

    assert seconds("a glue/sst2 lora seed 1") == 100
    assert seconds("a glue/rte tt-lora seed 0") == 10
    assert seconds("a glue/rte tt-lora seed 1") == 10
    assert estimate(done[:2], [by_title["a glue/rte lora seed 1"]], 1).seconds == 70
    assert estimate(done, [by_title["b glue/sst2 lora seed 0"]], 1) == Estimate(0, 0, 1)


def test_several_at_a_time(by_title):
    runs = list(by_title.values())
    rest = estimate([(runs[0], 60.0)], runs[1:], 2)
    assert (rest.seconds, rest.known, rest.unknown) == (7 * 60 / 2, 7, 8)


@pytest.mark.parametrize(
    ("rest", "line"),
    [
        (Estimate(100, 3, 0), "about 2 min left"),
        (Estimate(0, 0, 3), "the time left is not known before a first run is done"),
        (Estimate(100, 3, 1), "about 2 min left, and 1 run on models on which none is done yet"),
        (Estimate(100, 3, 2), "about 2 min left, and 2 runs on models on which none is done yet"),
    ],
)
def test_lines(rest, line):
    assert str(rest) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5_300, "88 min"), (5_400, "1 h 30 min"), (600_000, "7 days")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
