"""One HTML page that holds pictures and tables and needs no other file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..tables import Row, column_names, format_value

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
dt { font-family: monospace; } dd { margin: 0 0 .3rem 2rem; }
"""


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
