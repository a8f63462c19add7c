import json

import pytest

from ttlora.errors import UserError
from ttlora.experiments.folder import ComparisonFolder, read_record, write_failure


@pytest.fixture
def folder(tmp_path):
    return ComparisonFolder(tmp_path / "out")


def test_state_of_a_run(folder, plan):
    (run,) = plan()
    assert (folder.state(run), folder.error(run)) == ("waiting", None)
    run.folder.mkdir(parents=True)
    assert folder.state(run) == "waiting"
    (run.folder / "recipe.yaml").write_text("")
    assert folder.state(run) == "unfinished"
    write_failure(run, "no room")
    assert (folder.state(run), folder.error(run)) == ("failed", "no room")
    (run.folder / "result.json").write_text("")
    assert (folder.state(run), folder.error(run)) == ("done", None)


def test_a_failure_names_the_run(plan):
    run = plan(methods="[{method: lora, r: 4, label: small}]", seeds="[3]")[0]
    write_failure(run, "no room")
    assert json.loads((run.folder / "failed.json").read_text()) == {
        "method": "lora",
        "model": "bert",
        "task": "glue/sst2",
        "seed": 3,
        "label": "small",
        "error": "no room",
    }


def test_damaged_files_are_named(folder, plan):
    (run,) = plan()
    run.folder.mkdir(parents=True)
    (run.folder / "failed.json").write_text("{")
    assert "failed.json is damaged" in folder.error(run)
    (run.folder / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"result\.json is no result record .*; remove .* to do the run again"):
        read_record(run)


def test_two_comparisons_in_one_folder_are_refused(folder, plan):
    runs = plan()
    with folder.claim(runs):
        before = folder.plan.read_bytes()
        second = ComparisonFolder(folder.path).claim(plan(epochs="7"))
        with pytest.raises(UserError, match=r"another comparison is at work in .*out: wait for it"), second:
            pass
        assert folder.plan.read_bytes() == before
    with folder.claim(runs):
        pass


def test_changes_of_the_configuration(folder, plan):
    runs = plan(methods="[lora, tt-lora]")
    assert folder.changes(runs) == ([], [])
    with folder.claim(runs):
        for run in runs:
            run.folder.mkdir()
    assert folder.changes(runs) == ([], [])
    later = plan(methods="[{method: lora, epochs: 3}, tt-lora]")
    assert folder.changes(later) == ([later[0]], [runs[0].name])
    folder.plan.write_text("{")
    assert folder.changes(later) == ([], [runs[0].name])


def test_a_folder_in_use_is_left_alone(folder, plan):
    folder.require_usable()
    folder.path.mkdir()
    folder.require_usable()
    (folder.path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(mine\.txt\): name another as --output"):
        folder.require_usable()
    with pytest.raises(UserError, match=r"mine\.txt is a file"):
        ComparisonFolder(folder.path / "mine.txt").require_usable()
    (folder.path / "mine.txt").unlink()
    with folder.claim(plan()):
        folder.require_usable()
