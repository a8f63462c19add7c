"""`ttlora predict`: labels, or numbers, for new rows."""

import codecs
import json as json_format
import os
import sys
from pathlib import Path

from ttlora.errors import UserError
from ttlora.whole_files import write_text

# what file systems take, less the ending of a file that is half written
LONGEST_NAME = 255 - len(".tmp")


def predict(
    directory: str, *, input: str, output: str | None = None, model: str | None = None, json: bool = False
) -> None:
    """Predict with the saved adapter of a finished run, one JSON line for each row.

    A line is the row with new columns: prediction, the label, number or text; with labels also probabilities, those of
    all labels; of two answers rewards, those of both. For label kind text there is perplexity alone. A router adds
    expert, the name of the expert that it has chosen for the row.

    Args:
        directory: Output folder of ttlora train, or of ttlora route.
        input: JSONL, CSV or Parquet with the text columns that the run was trained on.
        output: File for the lines, instead of stdout; it must not be there yet.
        model: Where the base model is now, if it has moved since.
        json: Print one JSON object; without --output it holds the rows.
    """
    target = None if output is None else _require_free(output)
    from ttlora.finetune import finished

    rows = finished.predict(directory, Path(input), model)
    # JSON has a way to write what stdout cannot show, and Python another one
    plain = target is None and codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    lines = [json_format.dumps(row, ensure_ascii=plain, default=str) for row in rows]
    if target is not None:
        # once more: it may have been made in the meantime
        _require_free(target)
        write_text(target, "".join(f"{line}\n" for line in lines))
        summary = {"rows": len(rows), "output": str(target)}
        print(json_format.dumps(summary) if json else f"{len(rows)} rows with predictions: {target}")
    elif json:
        print(json_format.dumps({"rows": len(rows), "predictions": rows}, ensure_ascii=plain, default=str))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines)


def _require_free(output: str | Path) -> Path:
    """The path of a file that is not there yet, and can be made.

    Raises:
        UserError: It is there, or cannot be made.
    """
    target = Path(output)
    folder = target.absolute().parent
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        raise UserError(f"--output {target}: the name is too long for a file")
    if not str(output):
        raise UserError("--output is empty: name a file")
    if os.path.isdir(target):
        raise UserError(f"--output {target} is a folder: name a file in it")
    if os.path.exists(target) and not os.path.isfile(target):
        raise UserError(f"--output {target} is no ordinary file: without --output the rows go to stdout")
    if target.is_symlink():
        raise UserError(f"--output {target} is a link: name a file that is not there yet")
    if os.path.lexists(target):
        raise UserError(f"--output {target} is there already: name another file, or remove it")
    if not os.path.isdir(folder):
        raise UserError(f"--output {target}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output {target}: folder {folder} cannot be written to")
    return target
