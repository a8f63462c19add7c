"""The notebook: its cells run one after the other, and what stands below them tells no path of anybody's machine."""

import json
import re
from pathlib import Path

NOTEBOOK = json.loads((Path(__file__).parents[2] / "examples" / "fine_tune.ipynb").read_text("utf-8"))


def test_the_cells_run(llama, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODEL", str(llama))
    monkeypatch.setenv("DATA", str(data))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert re.search(r"^accuracy [01]\.\d{3}, epoch \d of \d$", said, re.MULTILINE)
    assert "LoRA of rank 4 for 4 modules: ['README.md', 'adapter_config.json', 'adapter_model.safetensors']" in said


def test_the_outputs_are_those_of_a_run():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = "".join(line for cell in code for output in cell["outputs"] for line in output["text"])
    assert "accuracy" in shown
    assert not re.search(r"(^|[\s'\"])(/|~|[A-Z]:\\)\w", shown)
