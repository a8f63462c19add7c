"""`ttlora round`: an adapter at smaller TT-ranks."""

from ttlora.cli.changes import require_approximation, write_and_report
from ttlora.errors import UserError


def round(
    adapter: str, *, output: str, r: int | None = None, tolerance: float | None = None, json: bool = False
) -> None:
    """Write a TT-LoRA adapter at smaller TT-ranks, and tell how far each update is from the one before.

    Args:
        adapter: A folder with a saved TT-LoRA adapter, or the output folder of ttlora train.
        output: Folder for the smaller adapter; empty or not there yet.
        r: Largest TT-rank that is left.
        tolerance: Largest relative error of each update, such as 0.01, in place of r.
        json: Print one JSON object.

    Raises:
        UserError: There is no such adapter, or nothing to round, or the output is in use.
    """
    require_approximation(r, tolerance)
    if (r is None) == (tolerance is None):
        raise UserError("say how far to round: either --r N or --tolerance X")

    from ttlora.adapters.read import read_adapter
    from ttlora.adapters.round import round_adapter
    from ttlora.whole_files import require_free

    path = require_free(output)
    write_and_report(round_adapter(read_adapter(adapter), r, tolerance or 0.0), path, json)
