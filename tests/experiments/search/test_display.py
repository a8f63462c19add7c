import pytest

from ttlora.experiments.search.display import Display


@pytest.fixture
def trials(begun):
    return [begun.trial(candidate) for candidate in begun.space.candidates(4, "random", 0)]


def test_terminal_shows_how_far_the_search_is(terminal, trials, end):
    with Display(4, {}) as shown:
        shown.epoch(trials[0], 1, 0.6, 0.61)
        shown.epoch(trials[1], 1, 0.5, 0.71)
        end(trials[0], 0.6, 0.61, epochs=1)
        shown.ended(trials[0])
        end(trials[1], 0.45, 0.75)
        shown.ended(trials[1])
        trials[2].fail("the loss [is] nan")
        shown.ended(trials[2])
        shown.epoch(trials[3], 1, 0.65, 0.55)
        shown.at_work([trials[3]])
    text = terminal.getvalue()
    assert "1/4 trial 0001" in text
    assert "accuracy 0.6100, loss 0.6000" in text
    assert "stopped after epoch 1" in text
    assert "failed: the loss [is] nan" in text
    assert "3 of 4 trials ended (1 done, 1 stopped early, 1 failed); at most 0 s left" in text
    assert "best so far: trial 0002, accuracy 0.7500, loss 0.4500" in text
    assert "epoch 1/2  loss 0.6500  score 0.5500" in text


def test_plain_lines_where_there_is_no_terminal(trials, end, capsys):
    with Display(4, {"0001": 1}) as shown:
        shown.epoch(trials[0], 1, 0.6, 0.61)
        shown.at_work(trials)
        end(trials[0], 0.6, 0.61)
        shown.ended(trials[0])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1/4 trial 0001 shape=")
    assert line.endswith(f"accuracy 0.6100, loss 0.6000, {trials[0].parameters:,} parameters")


def test_remembered_epochs_say_nothing_of_the_time_left(trials):
    shown = Display(4, {"0001": 2})
    shown.epoch(trials[0], 1, 0.6, 0.5)
    assert "left" not in shown._summary()
    shown.epoch(trials[0], 3, 0.6, 0.5)
    assert "left" in shown._summary()
