from tests.report.records import write_failure
from tests.report.search.made_up import make_search, make_trial, write_trial
from ttlora.report.search.answer import answer
from ttlora.report.search.trials import read_search


def test_the_lowest_loss_and_the_best_score_are_two_trials():
    low = make_trial(16_320, 0.84, 0.30, "low", r=5, learning_rate=1e-3)
    high = make_trial(40_000, 0.85, 0.33, "high", r=8, learning_rate=5e-4)
    found = answer(make_search(low, high), None)
    assert (found.best, found.highest, found.smallest) == (low, high, low)
    assert found.good == (
        "Trial low has the lowest validation loss, 0.3000: TT-rank 5, learning rate 1e-3. It scores 84.00 on SST-2 "
        "(accuracy × 100) with 16,320 parameters (31.9 KiB in 16 bit). Trial high has the best score, 85.00, at a "
        "validation loss of 0.3300: TT-rank 8, learning rate 5e-4, with 40,000 parameters (78.1 KiB in 16 bit)."
    )
    assert found.small.startswith("An adapter of 16,320 parameters (31.9 KiB in 16 bit) comes within one point")
    assert found.small.endswith("It is 2.5× smaller than that of the best score.")


def test_one_trial_is_best_in_both():
    found = answer(make_search(make_trial(100, 0.8, 0.3), make_trial(200, 0.7, 0.4)), None)
    assert found.good.endswith("no trial scores better.")
    assert found.small == (
        "No adapter smaller than that of trial trial, 100 parameters (200 B in 16 bit), comes within one point of the "
        "best score."
    )


def test_the_target():
    search = make_search(make_trial(100, 0.7, 0.5, "small"), make_trial(300, 0.9, 0.3, "large"))
    found = answer(search, 0.695)
    assert found.reaching is search.trials[1]
    assert "The smallest that reaches the target of 69.50 is that of trial small" in found.small
    assert answer(search, 0.95).small.endswith("No trial reaches the target of 95.00.")
    assert answer(search, 0.95).reaching is None


def test_what_it_took(tmp_path):
    write_trial(tmp_path, "a", planned=4, r=1, train_seconds=3000.0)
    write_trial(tmp_path, "b", planned=4, epochs=1, best_epoch=1, loss=0.1, r=2, train_seconds=6000.0)
    write_trial(tmp_path, "c", planned=4, epochs=1, best_epoch=1, loss=0.2, r=4, train_seconds=60.0)
    write_failure(tmp_path, "d")
    found = answer(read_search([tmp_path]), None)
    assert found.effort == ("4 trials: 1 ran to the end, 2 stopped early, 1 failed. 2 h 31 min of training in total.")
    assert "0.1000: TT-rank 2, learning rate 1e-3 (stopped after epoch 1 of 4)" in found.good


def test_no_adapter_at_all():
    found = answer(make_search(make_trial(0, 0.8), make_trial(500, 0.805)), None)
    assert found.small.startswith("An adapter of 0 parameters (0 B in 16 bit) comes within one point")
