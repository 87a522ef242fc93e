import base64
import math

from crate_mae_hf.analysis.report import html_page, html_picture, html_table

ROWS = [{"part": "encoder", "layer": 1, "rate": 1234.5678}, {"part": "<decoder>", "rate": math.nan, "error": 0.25}]


def test_html(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"png")
    page = html_page("A & B", {"Layers": [html_table(ROWS), html_picture(picture)]})
    assert "<title>A &amp; B</title>" in page
    assert "<td>&lt;decoder&gt;</td>" in page
    assert f"data:image/png;base64,{base64.b64encode(b'png').decode()}" in page
    assert "http" not in page
