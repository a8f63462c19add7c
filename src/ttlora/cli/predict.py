"""`ttlora predict`: labels, or numbers, for new rows."""

import json as json_format
import sys
from pathlib import Path

from ttlora.errors import UserError
from ttlora.whole_files import write_text


def predict(
    directory: str, *, input: str, output: str | None = None, model: str | None = None, json: bool = False
) -> None:
    """Predict with the saved adapter of a finished run, one JSON line for each row.

    A line is the row with a prediction: the label with every label's probability, or the number.

    Args:
        directory: Output folder of ttlora train.
        input: JSONL, CSV or Parquet with the text columns that the run was trained on.
        output: File for the lines, instead of stdout; it must not be there yet.
        model: Where the base model is now, if it has moved since.
        json: Print one JSON object; without --output it holds the rows.
    """
    target = None if output is None else Path(output)
    if target is not None and target.exists():
        raise UserError(f"--output {target} is there already: name another file, or remove it")
    if target is not None and not target.absolute().parent.is_dir():
        raise UserError(f"--output {target}: there is no folder {target.absolute().parent}")
    from ttlora.finetune.finished import FinishedRun

    rows = list(FinishedRun.load(directory, model).predict(Path(input)))
    lines = [json_format.dumps(row, ensure_ascii=False, default=str) for row in rows]
    if target is not None:
        write_text(target, "".join(f"{line}\n" for line in lines))
        summary = {"rows": len(rows), "output": str(target)}
        print(json_format.dumps(summary) if json else f"{len(rows)} rows with predictions: {target}")
    elif json:
        print(json_format.dumps({"rows": len(rows), "predictions": rows}, ensure_ascii=False, default=str))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines)
