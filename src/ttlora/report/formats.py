"""Numbers as they are printed."""

from ttlora.report.rows import Column, Mean


def format_mean(mean: Mean, scale: int = 100, with_count: bool = False) -> str:
    """A mean with its standard deviation, two digits each: ``84.12 ± 0.45 (3)`` with the number of seeds."""
    text = f"{scale * mean.value:,.2f}"
    if mean.spread is not None:
        text += f" ± {scale * mean.spread:.2f}"
    return f"{text} ({mean.count})" if with_count else text


def format_factor(factor: float) -> str:
    """A ratio as text, such as 3.4×: two significant digits below 10, whole numbers above."""
    if factor >= 10:
        return f"{factor:,.0f}×"
    return f"{factor:.1f}×" if factor >= 1 else f"{factor:#.2g}×"


def format_range(counts: tuple[int, int]) -> str:
    """One count if all are equal, or the smallest and the largest."""
    least, most = counts
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def format_size(count: int) -> str:
    """Bytes in KiB, MiB or GiB."""
    if count < 1024:
        return f"{count:,} B"
    for power, unit in ((1, "KiB"), (2, "MiB")):
        if count < 1024 ** (power + 1):
            return f"{count / 1024**power:,.1f} {unit}"
    return f"{count / 1024**3:,.2f} GiB"


def format_seconds(seconds: float) -> str:
    """Seconds with three significant digits."""
    return f"{seconds:,.0f} s" if seconds >= 99.95 else f"{seconds:#.3g} s"


def format_duration(seconds: float) -> str:
    """Seconds, or minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return format_seconds(seconds)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def format_metric(column: Column) -> str:
    """A metric's name and the factor for showing its values."""
    return column.measure if column.scale == 1 else f"{column.measure} × {column.scale}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 seed, 3 seeds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
