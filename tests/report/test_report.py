import pytest

from tests.report.records import write_failure, write_run
from ttlora.errors import UserError
from ttlora.report import report as module
from ttlora.report.report import write_report


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs", "tt")
    write_run(tmp_path / "runs", "lora", 0.7, method="lora")
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures take their time and have tests of their own."""
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_files(runs, tmp_path, monkeypatch):
    monkeypatch.undo()
    written = write_report([runs], tmp_path / "report")
    names = {
        f"figures/{name}.{end}"
        for name in ("score-by-parameters", "storage", "speed-and-memory")
        for end in ("svg", "png")
    }
    assert files(tmp_path / "report") == {"report.html", "tables.md", "tables.csv"} | names
    assert set(written.files) == {tmp_path / "report" / name for name in files(tmp_path / "report")}
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg ") == 3
    again = write_report([runs], tmp_path / "report")
    assert again.files == written.files
    assert (tmp_path / "report" / "report.html").read_text() == page


def test_an_earlier_report_is_replaced_as_a_whole(runs, tmp_path):
    write_report([runs], tmp_path / "report")
    (tmp_path / "report" / "figures" / "training-loss.png").touch()
    write_run(runs, "bitfit", method="bitfit")
    write_report([runs], tmp_path / "report")
    assert "BitFit" in (tmp_path / "report" / "tables.md").read_text()
    assert files(tmp_path / "report") == {"report.html", "tables.md", "tables.csv"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]


@pytest.mark.parametrize("name", ["notes.txt", "figures/mine.png", "figures/deep/storage.svg"])
def test_a_folder_with_anything_else_is_refused(name, runs, tmp_path):
    write_report([runs], tmp_path / "report")
    (tmp_path / "report" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "report" / name).write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        write_report([runs], tmp_path / "report")
    assert (tmp_path / "report" / name).read_text() == "mine"


def test_a_page_of_that_name_by_someone_else_is_refused(runs, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "report.html").write_text("<html>mine</html>")
    with pytest.raises(UserError, match=r"site holds other files \(report.html\)"):
        write_report([runs], tmp_path / "site")


def test_a_file_is_refused(runs, tmp_path):
    (tmp_path / "report").touch()
    with pytest.raises(UserError, match="is a file"):
        write_report([runs], tmp_path / "report")


def test_an_empty_folder_is_used(runs, tmp_path):
    (tmp_path / "report").mkdir()
    assert write_report([runs], tmp_path / "report").files


def test_what_fails_on_the_way_leaves_the_earlier_report(runs, tmp_path, monkeypatch):
    write_report([runs], tmp_path / "report")
    before = (tmp_path / "report" / "report.html").read_text()

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(module, "render_page", fail)
    with pytest.raises(RuntimeError):
        write_report([runs], tmp_path / "report")
    assert (tmp_path / "report" / "report.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]


def test_damaged_and_repeated_records_and_failures_are_told(runs, tmp_path):
    write_run(runs, "again")
    (runs / "bad").mkdir()
    (runs / "bad" / "result.json").write_text("{")
    write_failure(runs, "failed")
    written = write_report([runs], tmp_path / "report")
    assert [("bad" in note, "is left out" in note) for note in written.notes] == [(True, False), (False, True)]
    assert [failure.method for failure in written.failures] == ["boft"]
    assert "1 run failed" in (tmp_path / "report" / "tables.md").read_text()


def test_figures_of_several_models_have_names_of_their_own(tmp_path, monkeypatch):
    prefixes = []
    monkeypatch.setattr(module, "draw_figures", lambda _, prefix: prefixes.append(prefix) or [])
    for index, model in enumerate(("org/a b", "org/a?b", "../..")):
        write_run(tmp_path / "runs", str(index), model=model)
    write_report([tmp_path / "runs"], tmp_path / "report")
    assert sorted(prefixes) == ["model-", "org-a-b-", "org-a-b-3-"]


def test_half_characters_do_not_stop_a_report(tmp_path):
    path = write_run(tmp_path / "runs", "a", task="HALF", model="HALF", method="HALF", note="HALF") / "result.json"
    path.write_text(path.read_text().replace("HALF", "\\ud800"))
    assert "note: " in (write_report([path], tmp_path / "report").output / "report.html").read_text()
