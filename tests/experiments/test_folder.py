import json

import pytest

from ttlora.errors import UserError
from ttlora.experiments.folder import RunsFolder


@pytest.fixture
def folder(tmp_path):
    return RunsFolder(tmp_path / "out", "comparison")


def begin(folder, runs):
    with folder.claim():
        folder.write_plan({"runs": [{"run": run.name} for run in runs]})


def test_state_of_a_run(plan, end):
    (run,) = plan()
    assert (run.state, run.error) == ("waiting", None)
    run.folder.path.mkdir(parents=True)
    assert run.state == "waiting"
    (run.folder.path / "recipe.yaml").write_text("")
    assert run.state == "unfinished"
    run.fail("no room")
    assert (run.state, run.error) == ("failed", "no room")
    end(run, 0.5, epochs=run.recipe.epochs)
    assert (run.state, run.error) == ("done", None)
    end(run, 0.5, epochs=2)
    assert run.state == "stopped"


def test_a_failure_names_the_run(plan):
    run = plan(methods="[{method: lora, r: 4, label: small}]", seeds="[3]")[0]
    run.fail("no room")
    assert json.loads((run.folder.path / "failed.json").read_text()) == {
        "method": "lora",
        "model": "bert",
        "task": "glue/sst2",
        "seed": 3,
        "label": "small",
        "error": "no room",
    }


def test_damaged_files_are_named(plan):
    (run,) = plan()
    run.folder.path.mkdir(parents=True)
    (run.folder.path / "failed.json").write_text("{")
    assert "failed.json is damaged" in run.error
    (run.folder.path / "result.json").write_text("{}")
    with pytest.raises(UserError, match=r"result\.json is no result record .*; remove .* to do the run again"):
        _ = run.state


@pytest.mark.parametrize("kind", ["comparison", "search"])
def test_two_in_one_folder_are_refused(kind, tmp_path):
    folder = RunsFolder(tmp_path / "out", kind)
    with folder.claim():
        folder.write_plan({})
        with (
            pytest.raises(UserError, match=f"another {kind} is at work in .*out: wait for it"),
            RunsFolder(folder.path, kind).claim(),
        ):
            pass
    with folder.claim():
        pass


def test_changes_of_the_configuration(folder, plan):
    runs = plan(methods="[lora, tt-lora]")
    assert folder.changes(runs) == ([], [])
    begin(folder, runs)
    for run in runs:
        run.folder.path.mkdir()
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
    with pytest.raises(UserError, match=r"holds other files \(mine\.txt\): name another folder as `output`"):
        folder.require_usable()
    with pytest.raises(UserError, match=r"mine\.txt is a file"):
        RunsFolder(folder.path / "mine.txt", "comparison").require_usable()
    (folder.path / "mine.txt").unlink()
    begin(folder, plan())
    folder.require_usable()


def test_a_comparison_and_a_search_keep_out_of_each_others_folders(folder, plan, tmp_path):
    begin(folder, plan())
    with pytest.raises(UserError, match="out holds a comparison: name another folder as `output`"):
        RunsFolder(folder.path, "search").require_usable()
    other = RunsFolder(tmp_path / "search", "search")
    with other.claim():
        other.write_plan({"asked": {}, "trials": []})
    with pytest.raises(UserError, match="search holds a search: name another folder as `output`"):
        RunsFolder(other.path, "comparison").require_usable()


def test_a_search_of_an_earlier_version_says_how_to_go_on(tmp_path):
    folder = RunsFolder(tmp_path / "out", "search")
    (folder.path / "trials" / "0001").mkdir(parents=True)
    content = {"asked": {}, "trials": [{"name": "0001", "settings": {"r": 2}, "parameters": 5}]}
    (folder.path / "search.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="a search of an earlier version of ttlora: to go on with it, mv ") as error:
        folder.require_usable()
    commands = str(error.value).partition("mv ")[2].replace("mv ", "").split("; ")
    for source, target in (command.split() for command in commands):
        (tmp_path / source).rename(target)
    folder.require_usable()
    assert folder.read_plan() == content
