"""Tables of results: as aligned text, as Markdown, and as CSV and JSON files."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write rows to `path` with the suffixes `.csv` and `.json`; what a row does not have is empty, NaN is null."""
    names = column_names(rows)
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    records = [
        {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
        for row in rows
    ]
    path.with_suffix(".json").write_text(json.dumps(records, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def column_names(rows: Sequence[Row]) -> list[str]:
    """Return the keys of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def format_value(value: Any) -> str:
    """Return a number with four significant digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text_table(rows: Sequence[Row]) -> str:
    """Return rows as aligned text."""
    names = column_names(rows)
    cells = [names, *([format_value(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def markdown_table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    names = column_names(rows)
    cells = [names, ["---"] * len(names), *([format_value(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells) + "\n"
