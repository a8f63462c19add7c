import pytest

from tests.report.records import write_run
from tests.report.search.made_up import write_search, write_trial
from ttlora.errors import UserError
from ttlora.report import report as comparison
from ttlora.report.drawing import Picture
from ttlora.report.report import write_report
from ttlora.report.search import report as module
from ttlora.report.search.figures import FIGURE_NAMES
from ttlora.report.search.report import write_search_report


@pytest.fixture
def no_figures(monkeypatch):
    """Figures take their time and have tests of their own."""
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_files_and_what_they_say(tmp_path, monkeypatch):
    pictures = [Picture(name, "Title", "Description", "<svg></svg>", b"") for name in FIGURE_NAMES]
    monkeypatch.setattr(module, "draw_figures", lambda *_: pictures)
    write_search(tmp_path / "trials", 10)
    written = write_search_report([tmp_path / "trials"], tmp_path / "report", 0.5, ["random over 10 trials"])
    figures = {f"figures/{name}.{end}" for name in FIGURE_NAMES for end in ("svg", "png")}
    assert files(tmp_path / "report") == {"report.html", "tables.md", "tables.csv"} | figures
    assert set(written.files) == {tmp_path / "report" / name for name in files(tmp_path / "report")}
    assert written.answer.best is written.search.trials[0]
    assert written.answer.reaching in written.front
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg>") == 5
    assert "random over 10 trials" in page
    assert written.answer.small.split()[0] in page


def test_an_earlier_report_of_a_search_is_replaced(tmp_path, no_figures):
    write_trial(tmp_path / "trials", "a", r=1)
    write_search_report([tmp_path / "trials"], tmp_path / "report")
    (tmp_path / "report" / "figures" / "pareto-front.png").touch()
    write_trial(tmp_path / "trials", "b", r=2)
    written = write_search_report([tmp_path / "trials"], tmp_path / "report")
    assert len(written.search.trials) == 2
    assert files(tmp_path / "report") == {"report.html", "tables.md", "tables.csv"}


def test_other_files_are_refused_before_anything_is_read(tmp_path, no_figures):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        write_search_report([tmp_path / "nowhere"], tmp_path / "report")
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"


def test_what_comes_into_the_folder_meanwhile_is_kept(tmp_path, monkeypatch):
    write_trial(tmp_path / "trials", "a")

    def write_notes(*_):
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "notes.txt").write_text("mine")
        return []

    monkeypatch.setattr(module, "draw_figures", write_notes)
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\)"):
        write_search_report([tmp_path / "trials"], tmp_path / "report")
    assert (tmp_path / "report" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "trials"]


def test_the_figures_of_a_comparison_are_other_files(tmp_path, monkeypatch, no_figures):
    monkeypatch.setattr(comparison, "draw_figures", lambda *_: [])
    write_run(tmp_path / "runs", "a")
    write_report([tmp_path / "runs"], tmp_path / "report")
    (tmp_path / "report" / "figures" / "storage.png").touch()
    with pytest.raises(UserError, match=r"holds other files \(figures/storage.png\)"):
        write_search_report([tmp_path / "runs"], tmp_path / "report")
