"""Tables of results: as aligned text, as Markdown, and as CSV and JSON files."""

import csv
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# How cells of a column of numbers begin; a range is one, "0.1-0.3", and so is what is missing.
NUMBER = re.compile(r"[-+]?\d|[-+]?inf$|nan$|$")


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
    """Return rows as aligned text: numbers to the right, words to the left.

    Floats get four significant digits; numbers that are strings already stay as they are.
    """
    return "\n".join("  ".join(cells) for cells in _align(_columns(rows)))


def markdown_table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table, which is aligned as text too; cells as in `text_table`."""
    columns = [[cell.replace("|", "\\|") for cell in column] for column in _columns(rows)]
    header, *lines = _align(columns)
    rule = [
        "-" * (len(cell) - 1) + ":" if _is_numeric(column) else "-" * max(3, len(cell))
        for cell, column in zip(header, columns, strict=True)
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *lines))


def summarise(seeds: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the table of several seeds, each with the same rows: what they have in common, or mean ± deviation."""
    columns = ({name: [row[name] for row in rows] for name in rows[0]} for rows in zip(*seeds, strict=True))
    return [{name: _summarise_cell(values) for name, values in cells.items()} for cells in columns]


def _summarise_cell(values: Sequence[Any]) -> str:
    """Return what all seeds have in common, or mean and standard deviation over seeds."""
    if len(set(values)) == 1:
        return format_value(values[0])
    digits = 4 if max(values) <= 1 else 0
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _columns(rows: Sequence[Row]) -> list[list[str]]:
    """Return each column as its name and its cells."""
    return [[name, *(format_value(row.get(name, "")) for row in rows)] for name in column_names(rows)]


def _is_numeric(column: Sequence[str]) -> bool:
    return all(NUMBER.match(cell) for cell in column[1:])


def _align(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lines of a table with the cells of a column equally wide, at least as wide as a rule in Markdown.

    Words in the last column are not filled up: some are long.
    """
    aligned = []
    for number, column in enumerate(columns, 1):
        width = max(3, *map(len, column))
        if _is_numeric(column):
            aligned.append([cell.rjust(width) for cell in column])
        elif number < len(columns):
            aligned.append([cell.ljust(width) for cell in column])
        else:
            aligned.append(list(column))
    return [list(line) for line in zip(*aligned, strict=True)]
