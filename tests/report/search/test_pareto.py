from hypothesis import given
from hypothesis import strategies as st

from tests.report.search.made_up import make_trial
from ttlora.report.search.pareto import front, highest, smallest_reaching, smallest_within_a_point

TRIALS = st.lists(
    st.builds(
        make_trial,
        st.integers(0, 6),
        st.integers(0, 6).map(lambda score: score / 10),
        st.sampled_from([0.3, 0.4]),
        primary_metric=st.just("accuracy"),
    ),
    min_size=1,
    max_size=12,
)


def beats(one, other):
    pair, its = (-one.parameters, one.score), (-other.parameters, other.score)
    return pair != its and pair[0] >= its[0] and pair[1] >= its[1]


@given(TRIALS)
def test_nothing_beats_the_front_and_the_front_beats_the_rest(trials):
    found = front(trials)
    points = {(trial.parameters, trial.score) for trial in found}
    assert points == {
        (trial.parameters, trial.score) for trial in trials if not any(beats(other, trial) for other in trials)
    }
    assert len(points) == len(found)
    assert [trial.parameters for trial in found] == sorted(trial.parameters for trial in found)


@given(TRIALS)
def test_the_smallest_that_is_good_enough_is_on_the_front(trials):
    found = front(trials)
    assert found[-1] is highest(trials)
    assert smallest_within_a_point(trials) in found
    reaching = smallest_reaching(trials, 0.3)
    assert reaching in found if any(trial.score >= 0.3 for trial in trials) else reaching is None


def test_of_equals_the_one_with_the_lower_loss():
    worse, better = make_trial(10, 0.8, 0.5), make_trial(10, 0.8, 0.4)
    assert front([worse, better]) == (better,)


def test_a_point_is_a_hundredth():
    small, exact, best = make_trial(10, 0.839), make_trial(20, 0.84), make_trial(30, 0.85)
    assert smallest_within_a_point([small, exact, best]) is exact
    assert smallest_reaching([small, exact, best], 0.84) is exact
    assert smallest_reaching([small, exact, best], 0.86) is None


def test_perplexities_are_better_if_lower_and_have_no_points():
    trials = [
        make_trial(size, score, primary_metric="perplexity") for size, score in ((10, 20.3), (20, 20.1), (30, 20))
    ]
    assert front(trials) == tuple(trials)
    assert highest(trials) is trials[2]
    assert smallest_within_a_point(trials) is trials[1]
    assert smallest_reaching(trials, 20.2) is trials[1]
