"""Tables and the HTML page."""

import base64
import csv
import json
import math

from crate_mae_hf.analysis.report import html_page, html_picture, html_table
from crate_mae_hf.tables import text_table, write_table

ROWS = [{"part": "encoder", "layer": 1, "rate": 1234.5678}, {"part": "<decoder>", "rate": math.nan, "error": 0.25}]


def test_write_table(tmp_path):
    write_table(ROWS, tmp_path / "layers")
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"part": "encoder", "layer": "1", "rate": "1234.5678", "error": ""}
    assert json.loads((tmp_path / "layers.json").read_text()) == [ROWS[0], {**ROWS[1], "rate": None}]


def test_text_table_is_aligned():
    lines = text_table(ROWS).splitlines()
    assert lines[0].split() == ["part", "layer", "rate", "error"]
    assert lines[1].split() == ["encoder", "1", "1235"]
    assert len({len(line) for line in lines}) == 1


def test_html(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    page = html_page("A & B", {"Layers": [html_table(ROWS), html_picture(picture)]})
    assert "<title>A &amp; B</title>" in page
    assert "<td>&lt;decoder&gt;</td>" in page
    assert f"data:image/png;base64,{base64.b64encode(b'png').decode()}" in page
    assert "http" not in page
