import pytest

from tests.report.records import write_failure
from tests.report.search.made_up import make_search, make_trial, write_trial
from ttlora.errors import UserError
from ttlora.report.search.trials import number_text, read_search, setting_text


def test_trials_by_rising_loss_with_what_failed_and_what_cannot_be_read(tmp_path):
    write_trial(tmp_path, "a", loss=0.5, r=1)
    write_trial(tmp_path, "b", loss=0.3, r=2)
    write_failure(tmp_path, "c", error="out of memory")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "result.json").write_text("{")
    search = read_search([tmp_path])
    assert [trial.name for trial in search.trials] == ["b", "a"]
    assert [failure.folder for failure in search.failures] == [str(tmp_path / "c")]
    assert len(search.notes) == 1


@pytest.mark.parametrize(
    ("epochs", "best_epoch", "stopped"),
    [(20, 20, False), (20, 3, False), (3, 3, True), (9, 5, True), (9, 4, False), (5, 0, False)],
)
def test_a_trial_that_ran_out_of_patience_was_not_stopped(epochs, best_epoch, stopped):
    trial = make_trial(planned=20, epochs=epochs, best_epoch=best_epoch, patience=5)
    assert trial.record.stopped_early is stopped


def test_what_was_searched_is_what_differs():
    search = make_search(
        make_trial(r=4, alpha=2.0, shape=[16, 24, 24, 16], learning_rate=1e-3, warmup=0.0, seed=1),
        make_trial(r=5, alpha=2, shape=[384, 384], learning_rate=1e-3, warmup=0.1, seed=2),
    )
    assert search.searched == ("r", "shape", "warmup")
    assert search.shown == ("shape", "r", "alpha", "learning_rate", "warmup")
    assert search.describe(search.trials[0]) == (
        "tensor shape [16, 24, 24, 16], TT-rank 4, α 2, learning rate 1e-3, warmup 0"
    )


def test_fields_of_a_methods_own_config_and_methods_are_settings():
    search = make_search(
        make_trial(method="vera", settings={"d_initial": 0.1}), make_trial(method="lora", settings={"d_initial": 0.2})
    )
    assert search.searched == ("d_initial", "method")
    assert search.method == "2 methods"
    assert search.heading("r") == "rank"


def test_several_models_or_tasks_are_no_search(tmp_path):
    write_trial(tmp_path, "a", r=1)
    write_trial(tmp_path, "b", r=2, model="other/bert")
    with pytest.raises(UserError, match=r"trials on 2 models \(other/bert, some/bert\): name those of one search"):
        read_search([tmp_path])
    write_trial(tmp_path / "c", "c", task="glue/rte")
    with pytest.raises(UserError, match=r"trials on 2 tasks \(SST-2, RTE\)"):
        read_search([tmp_path / "a", tmp_path / "c"])


def test_trials_of_one_name_are_told_apart(tmp_path):
    write_trial(tmp_path / "first", "trial", r=1)
    write_trial(tmp_path / "second", "trial", r=2)
    names = {trial.name for trial in read_search([tmp_path]).trials}
    assert names == {"first/trial", "second/trial"}


def test_a_score_that_is_better_if_lower():
    trial = make_trial(score=9.5, primary_metric="perplexity")
    assert (trial.merit, make_search(trial).score_text(trial)) == (-9.5, "9.50")


def test_settings_as_text():
    assert setting_text([16, 24, 24, 16]) == "[16, 24, 24, 16]"
    assert setting_text({"q_proj": [64, 64], "v_proj": [16, 64]}) == "q_proj [64, 64], v_proj [16, 64]"
    assert [setting_text(value) for value in (None, 5, True, "auto", 4.0)] == ["–", "5", "true", "auto", "4"]
    assert setting_text("a\x1b[0m\nb") == "a [0m b"
    assert [number_text(value) for value in (0.0005, 1.23e-4, 0.01, 1e-5, 0.0, -2e-3, 3e7, 12)] == [
        *("5e-4", "1.23e-4", "0.01", "1e-5", "0", "-2e-3", "3e7", "12")
    ]
