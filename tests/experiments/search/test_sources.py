import json

from ttlora.experiments.engine import Listed
from ttlora.experiments.folder import RunsFolder
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.search import Search
from ttlora.experiments.search.sources import Ladder, Proposed
from ttlora.experiments.search.space import Space
from ttlora.experiments.search.trial import Trial


def drain(source, count: int = 1000) -> list[Trial]:
    trials = []
    while len(trials) < count and (trial := source.next()) is not None:
        trials.append(trial)
    return trials


def test_listed_gives_all_in_order(begun):
    trials = [begun.trial(candidate) for candidate in begun.space.candidates(5, "random", 0)]
    assert [trial.name for trial in trials] == ["0001", "0002", "0003", "0004", "0005"]
    assert drain(Listed(trials)) == trials


def test_ladder_ends_with_the_score(begun, end):
    candidates = begun.space.ladder(9)
    assert [one.parameters for one in candidates] == sorted(one.parameters for one in candidates)
    ladder = Ladder(candidates, begun.trial, 0.8)
    first, second, third = (ladder.next() for _ in range(3))
    end(first, 0.5, 0.79)
    ladder.ended(first)
    begun.trial(candidates[3]).fail("no memory")
    assert ladder.next().settings == candidates[4].settings
    end(third, 0.4, 0.8)
    ladder.ended(third)
    assert ladder.next() is None
    end(second, 0.4, 0.81)
    ladder.ended(second)
    assert ladder.next() is None


def test_optuna_proposes_within_the_bound_and_nothing_twice(begun, end):
    source = Proposed(begun.space, [], begun.trial, seed=3)
    trials = []
    for _ in range(12):
        trial = source.next()
        end(trial, loss=abs(trial.recipe.learning_rate - 1e-3))
        source.ended(trial)
        trials.append(trial)
    assert len({json.dumps(trial.settings) for trial in trials}) == 12
    assert all(2 * trial.parameters <= 1200 for trial in trials)
    assert all(1e-4 <= trial.recipe.learning_rate <= 1e-2 for trial in trials)
    # it learns: the later half is nearer to the best rate than the earlier one
    assert len({trial.recipe.learning_rate for trial in trials}) > 6


def test_optuna_goes_on_with_what_was_proposed_before(begun, end):
    before = drain(Proposed(begun.space, [], begun.trial, seed=3), 4)
    end(before[0], loss=0.3)
    again = Search(begun.plan, begun.space, begun.folder)
    assert [trial.settings for trial in again.trials] == [trial.settings for trial in before]
    source = Proposed(again.space, again.listed(), again.trial, seed=3)
    proposed = drain(source, 6)
    assert [trial.name for trial in proposed[:4]] == [trial.name for trial in before]
    assert [trial.name for trial in proposed] == ["0001", "0002", "0003", "0004", "0005", "0006"]


def test_optuna_ends_where_the_space_does(bert, data, tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text(f"model: {bert}\ntask: glue/sst2\ndata: {data}\nspace: {{r: [1, 2]}}\nsampler: optuna\n")
    plan = SearchPlan.read(path)
    folder = RunsFolder(tmp_path / "few", "search")
    with folder.claim():
        few = Search(plan, Space.of(plan), folder)
    source = Proposed(few.space, [], few.trial, seed=0)
    assert len(drain(source)) == 2


def test_best_is_the_lowest_loss_or_the_smallest_that_reaches(begun, end):
    trials = [begun.trial(candidate) for candidate in begun.space.ladder(9)][:3]
    for trial, loss, score in zip(trials, (0.5, 0.3, 0.4), (0.7, 0.8, 0.9), strict=True):
        end(trial, loss, score)
    assert begun.best() is trials[1]
    for target, best in ((0.75, trials[1]), (0.85, trials[2]), (0.95, None)):
        wanted = Search(begun.plan.override(target_score=target), begun.space, begun.folder)
        assert (wanted.best() and wanted.best().name) == (best and best.name)
