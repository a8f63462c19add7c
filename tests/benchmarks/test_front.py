"""The figure of score against parameters."""

import front
import pytest

TT = 'tt:pooler=true,r=2,target_modules=".*layer.*(value|dense)"'


def records(setting, parameters, scores, rate=1e-3, seed=0):
    common = {"setting": setting, "parameters": parameters, "learning_rate": rate, "seed": seed}
    return [{**common, "data": task, "score": score} for task, score in zip(front.TASKS, scores, strict=True)]


def test_a_point_is_the_mean_over_seeds_at_the_best_rate():
    given = [
        *records(TT, 100, (0.8, 0.7, 0.8), seed=0),
        *records(TT, 100, (0.6, 0.7, 0.8), seed=1),
        *records(TT, 100, (0.9, 0.0, 0.0), rate=2e-3),
        # a task is missing
        *records(TT, 100, (1.0, 1.0, 1.0), rate=3e-3)[:2],
        *records("lora:linear=true,r=8", 1000, (0.9, 0.9, 0.9)),
    ]
    ours, lora = front.points_of(given)
    assert (ours.name, ours.parameters, ours.method) == ("TT r 2, but q k", 100, "tt-lora")
    assert ours.scores == pytest.approx({"stsb": 0.7, "mrpc": 0.7, "sst2": 0.8})
    assert (lora.name, lora.mean) == ("LoRA r 8, all linear", pytest.approx(0.9))


def test_the_front_is_drawn(tmp_path):
    settings = [(TT, 100, 0.8), ("lora", 1000, 0.9), ("tt:r=3", 500, 0.7), ("ia3", 700, 0.7)]
    points = front.points_of(
        [record for name, count, score in settings for record in records(name, count, [score] * 3)]
    )
    mean = front.draw(points).axes[-1]
    assert list(mean.lines[0].get_xdata()) == [100, 1000]
    # of those that are not ours each has its name
    assert {text.get_text() for text in mean.texts} == {"TT r 2, but q k", "LoRA", "IA3"}
