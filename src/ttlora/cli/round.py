"""`ttlora round`: an adapter at smaller TT-ranks."""

from ttlora.cli.changes import print_changes


def round(
    adapter: str,
    *,
    output: str,
    r: int | None = None,
    tolerance: float | None = None,
    parameters: str | None = None,
    json: bool = False,
) -> None:
    """Write an adapter of TT-LoRA or MetaTT at smaller TT-ranks, and tell how far each update is from the one before.

    Args:
        adapter: A folder with a saved adapter of TT-LoRA or MetaTT, or the output folder of ttlora train.
        output: Folder for the smaller adapter; empty or not there yet.
        r: Largest TT-rank that is left.
        tolerance: Largest relative error of each update, such as 0.01, in place of r.
        parameters: In place of both, how many parameters are left in all, such as 4000, or their size in 16 bit, such
            as 8KB.
        json: Print one JSON object.

    Raises:
        UserError: There is no such adapter, or nothing to round, or the output is in use.
    """
    from ttlora.adapters.round import round as write_rounded

    print_changes(write_rounded(adapter, output, r, tolerance, parameters), output, json)
