import csv
import io

import pytest

from tests.report.records import write_run
from ttlora.report.comparison import compare
from ttlora.report.formats import format_factor, format_mean, format_range, format_seconds, format_size
from ttlora.report.rows import Mean
from ttlora.report.runs import Failure, find_runs
from ttlora.report.tables import explanations, score_table, to_csv, to_markdown


@pytest.fixture
def comparisons(tmp_path):
    def call():
        return compare(find_runs([tmp_path]).runs)

    return call


def test_markdown_in_the_papers_layout(tmp_path, comparisons):
    for seed, (ours, theirs) in enumerate([(0.80, 0.90), (0.84, 0.92)]):
        write_run(tmp_path, f"tt{seed}", ours, seed=seed, r=5)
        write_run(tmp_path, f"lora{seed}", theirs, seed=seed, method="lora", r=8)
    text = to_markdown(comparisons(), [("Good.", "Small.", "Fast.")], [])
    assert text.startswith("## some/bert\n\nGood.\n\nSmall.\n\nFast.\n\n")
    lines = text.splitlines()
    start = lines.index("| method | parameters | SST-2 | average | size / TT-LoRA r=5 |")
    assert lines[start + 1 : start + 4] == [
        "| --- | ---: | ---: | ---: | ---: |",
        "| LoRA r=8 | 73,728 | **91.00 ± 1.41** | **91.00 ± 1.41** | 4.5× |",
        "| TT-LoRA r=5 | 16,320 | 82.00 ± 2.83 | 82.00 ± 2.83 | 1 |",
    ]
    assert "Mean ± standard deviation over 2 seeds. SST-2 accuracy × 100." in lines
    assert "| TT-LoRA r=5 | 770 | 31.9 KiB | 33.8 KiB | 0.500 s | 12.5 s | 1.00 GiB |" in lines


def test_a_single_run_has_no_average_and_no_other_size(tmp_path, comparisons):
    write_run(tmp_path, "tt", 0.8)
    (comparison,) = comparisons()
    assert score_table(comparison).headings == ("method", "parameters", "SST-2")
    assert [entry.text for entry in score_table(comparison).rows[0]] == ["TT-LoRA", "16,320", "80.00"]


def test_the_number_of_seeds_is_told_where_it_varies(tmp_path, comparisons):
    for seed in range(3):
        write_run(tmp_path, f"tt{seed}", 0.8, seed=seed)
    write_run(tmp_path, "lora", 0.9, method="lora")
    (comparison,) = comparisons()
    texts = [[entry.text for entry in row] for row in score_table(comparison).rows]
    assert texts[0] == ["LoRA", "73,728", "90.00 (1)", "90.00 (1)", "4.5×"]
    assert texts[1] == ["TT-LoRA", "16,320", "80.00 ± 0.00 (3)", "80.00 ± 0.00 (3)", "1"]
    assert "their number in brackets" in explanations(comparison)[0]


def test_cells_without_runs(tmp_path, comparisons):
    write_run(tmp_path, "tt", 0.8)
    write_run(tmp_path, "lora", 0.8, method="lora", task="glue/rte")
    write_run(tmp_path, "head", 0.7, method="head")
    (comparison,) = comparisons()
    assert [[entry.text for entry in row] for row in score_table(comparison).rows] == [
        ["LoRA", "73,728", "–", "80.00", "–", "4.5×"],
        ["Head alone", "0", "70.00", "–", "–", "–"],
        ["TT-LoRA", "16,320", "80.00", "–", "–", "1"],
    ]


def test_names_mean_nothing_to_markdown(tmp_path, comparisons):
    write_run(tmp_path, "a", method="*a*|<b>`_[x](y)")
    text = to_markdown(comparisons(), [()], [Failure("m|m", "m", "t", "0", "<i>a|b", "f")])
    assert r"| \*a\*\|&lt;b&gt;\`\_\[x\](y) | 5,000 |" in text
    assert "## 1 run failed" in text
    assert r"| m\|m | m | t | 0 | f | &lt;i&gt;a\|b |" in text


def test_csv_gives_back_the_numbers(tmp_path, comparisons):
    write_run(tmp_path, "a", 0.8, seed=0, r=5)
    write_run(tmp_path, "b", 0.9, seed=1, r=5)
    write_run(tmp_path, "c", 0.25, model="other", task="glue/rte", method="lora")
    first, second = csv.DictReader(io.StringIO(to_csv(comparisons())))
    assert (first["model"], first["method"], first["RTE accuracy × 100"], first["RTE accuracy × 100 n"]) == (
        *("other", "LoRA", "25.0000", "1"),
    )
    assert first["SST-2 accuracy × 100"] == ""
    assert second["adapter parameters"] == "16320"
    assert float(second["SST-2 accuracy × 100"]) == pytest.approx(85)
    assert float(second["SST-2 accuracy × 100 sd"]) == pytest.approx(7.0711)
    assert float(second["average"]) == pytest.approx(85)
    assert "size / TT-LoRA r=5" not in second, "there is no other method on its model"
    assert second["adapter bytes in 16 bit"] == "32640"


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "@x", "-x"])
def test_no_name_is_a_formula(name, tmp_path, comparisons):
    write_run(tmp_path, "a", -0.5, method=name, model=name)
    rows = list(csv.reader(io.StringIO(to_csv(comparisons()))))
    assert rows[1][:2] == [f"'{name}", f"'{name}"]
    assert "-50.0000" in rows[1]


def test_numbers():
    assert format_mean(Mean(0.12345, 0.01, 3)) == "12.35 ± 1.00"
    assert format_mean(Mean(12.5, None, 1), scale=1, with_count=True) == "12.50 (1)"
    assert [format_factor(factor) for factor in (0.238, 1.04, 4.52, 37.2, 1560)] == [
        "0.24×",
        "1.0×",
        "4.5×",
        "37×",
        "1,560×",
    ]
    assert [format_range(counts) for counts in ((5, 5), (385, 1155))] == ["5", "385 to 1,155"]
    assert [format_size(count) for count in (0, 1000, 43_776 + 344, 5 * 2**20, 3 * 2**30)] == [
        *("0 B", "1,000 B", "43.1 KiB", "5.0 MiB", "3.00 GiB"),
    ]
    assert [format_seconds(seconds) for seconds in (0.04471, 0.5, 12.51, 99.97, 1234.5)] == [
        *("0.0447 s", "0.500 s", "12.5 s", "100 s", "1,234 s")
    ]
