"""Tables as CSV and JSON, and one HTML page that holds pictures and tables and needs no other file."""

import base64
import csv
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
dt { font-family: monospace; } dd { margin: 0 0 .3rem 2rem; }
"""

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


def html_table(rows: Sequence[Row]) -> str:
    """Return rows as an HTML table; numbers with four significant digits."""
    names = column_names(rows)
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(format_value(row.get(name, '')))}</td>" for name in names) + "</tr>\n"
        for row in rows
    )
    return f'<div class="table"><table><tr>{header}</tr>\n{body}</table></div>'


def html_definitions(descriptions: dict[str, str]) -> str:
    """Return names and what they mean as an HTML list."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in descriptions.items())
    return f"<dl>{items}</dl>"


def html_picture(path: Path) -> str:
    """Return a PNG as an HTML element that holds it."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def html_page(title: str, sections: Mapping[str, Sequence[str]]) -> str:
    """Return a page: a heading for each section, and below it its pieces of HTML."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n" + "\n".join(parts) for heading, parts in sections.items())
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
