"""Tables in the terminal: a header and aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["format_table", "size_text"]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table without borders; [] if there are no rows."""
    if not rows:
        return []
    table = [tuple(header), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    # the last column is not padded, so a long path does not fill the other lines with spaces
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def size_text(count: int | None) -> str:
    """Bytes in binary units with one decimal (`23.6 GiB`), or `-` if the size is unknown."""
    if count is None:
        return "-"
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
