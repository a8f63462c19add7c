import math
import random

import pytest

from tests.report.search.made_up import log_of, make_search, make_trial
from ttlora.report.search.importance import _columns, _comparable, importances


def trials_of(count, loss, **changes):
    """Trials with independent settings; `loss` of them and of a random number is what they come to."""
    chance = random.Random(1)
    for number in range(count):
        settings = {
            "r": chance.choice([1, 2, 4, 8]),
            "alpha": chance.choice([1.0, 4.0, 16.0]),
            "learning_rate": chance.choice([1e-4, 1e-3, 1e-2]),
            "shape": chance.choice([[384, 384], [16, 24, 24, 16], [8, 6, 8, 8, 6, 8]]),
        }
        yield make_trial(loss=loss(settings, chance.random()), name=str(number), **settings, **changes)


def test_shares_are_those_of_a_sum():
    # the terms have variances 2/3 and 1/6
    lengths = {2: 0.0, 4: 0.5, 6: 1.0}
    rates = {1e-4: 0.0, 1e-3: 1.0, 1e-2: 2.0}
    search = make_search(
        *trials_of(150, lambda settings, _: rates[settings["learning_rate"]] + lengths[len(settings["shape"])])
    )
    found = importances(search)
    assert [one.setting for one in found.settings[:2]] == ["learning_rate", "shape"]
    assert [one.share for one in found.settings] == pytest.approx([0.8, 0.2, 0.0, 0.0], abs=0.1)
    assert found.fit > 0.95
    assert "150 trials that came to epoch 8" in found.explanation


def test_a_setting_that_decides_all_has_no_more_than_all():
    search = make_search(*trials_of(20, lambda settings, _: float(settings["learning_rate"] > 5e-3)))
    assert [one.share for one in importances(search).settings] == [1.0, 0.0, 0.0, 0.0]


def test_a_trial_that_diverged_hides_nothing():
    trials = list(trials_of(30, lambda settings, noise: abs(math.log10(settings["learning_rate"]) + 3) + 0.1 * noise))
    found = importances(make_search(*trials, make_trial(loss=50.0, r=1, alpha=1.0, learning_rate=1e-3, shape=[4, 4])))
    assert found.settings[0].setting == "learning_rate"
    assert found.fit > 0.6


def test_the_same_trials_give_the_same_shares():
    search = make_search(*trials_of(20, lambda settings, _: settings["learning_rate"]))
    assert importances(search) == importances(search)


def test_noise_is_called_so():
    found = importances(make_search(*trials_of(24, lambda _, noise: noise)))
    assert found.settings == ()
    assert found.fit <= 0
    assert "do not tell which settings matter" in found.explanation


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        (list(trials_of(7, lambda settings, _: settings["r"])), "7 trials can be compared, and 8 are the fewest"),
        (list(trials_of(9, lambda *_: 0.4)), "the same validation loss"),
        ([make_trial(loss=loss / 10, seed=loss) for loss in range(9)], "the same settings"),
    ],
)
def test_nothing_is_said_from_nothing(trials, reason):
    found = importances(make_search(*trials))
    assert (found.settings, found.fit) == ((), None)
    assert reason in found.explanation


def test_stopped_trials_are_compared_at_the_last_epoch_that_half_have_reached():
    log = log_of(0.9, 0.5, 0.8, 0.2)
    whole = [make_trial(loss=0.2, planned=4, best_epoch=4, log=log, name="whole") for _ in range(5)]
    halfway = [make_trial(loss=0.6, planned=4, epochs=2, best_epoch=2, name="half") for _ in range(5)]
    early = [make_trial(loss=0.1, planned=4, epochs=1, best_epoch=1, name="early") for _ in range(3)]
    patient = make_trial(loss=0.3, planned=4, epochs=2, best_epoch=1, patience=1, name="patient")
    epoch, trials, losses = _comparable([*whole, *halfway, *early, patient])
    assert epoch == 2
    assert {(trial.name, loss) for trial, loss in zip(trials, losses, strict=True)} == {
        *(("whole", 0.5), ("half", 0.6), ("patient", 0.3))
    }
    assert _comparable([*whole, *whole, *early])[0] == 4


def test_a_stopped_trial_without_a_log_is_left_out_where_its_loss_came_later():
    trials = [make_trial(planned=4, name="whole")] + [make_trial(planned=4, epochs=2, best_epoch=2)] * 20
    assert len(_comparable(trials)[1]) < 21


def test_settings_as_columns():
    assert _columns([1, 10.0]).tolist() == [[0.0], [pytest.approx(2.302585)]]
    assert _columns([0, 10]).tolist() == [[0.0], [10.0]]
    assert _columns([[4, 16], {"q": [4, 4, 4], "v": [2]}])[:, 0].tolist() == [2, 3]
    assert _columns(["a", None, "b"]).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert _columns([[4, 16], "auto"]).shape == (2, 2)
