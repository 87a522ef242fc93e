import csv
import json
import math

from crate_mae_hf.tables import markdown_table, summarise, text_table, write_table

ROWS = [{"part": "encoder", "layer": 1, "rate": 1234.5678}, {"part": "<decoder>", "rate": math.nan, "error": 0.25}]
WORDS = [
    {"model": "a|b", "range": "0.5-0.7", "seconds": "1.50", "note": "a note that is rather long"},
    {"model": "crate_mae", "range": "10-12", "seconds": "12.00", "note": "none"},
]


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


def test_words_are_aligned_left_and_numbers_right():
    assert text_table(WORDS).splitlines() == [
        "model      " + "  range  seconds  note",
        "a|b        " + "0.5-0.7     1.50  a note that is rather long",
        "crate_mae  " + "  10-12    12.00  none",
    ]


def test_markdown_table():
    assert markdown_table(WORDS) == (
        "| model     |   range | seconds | note |\n"
        "| --------- | ------: | ------: | ---- |\n"
        "| a\\|b      | 0.5-0.7 |    1.50 | a note that is rather long |\n"
        "| crate_mae |   10-12 |   12.00 | none |\n"
    )
    assert markdown_table([{"k": 1}, {"k": math.nan}]) == "|   k |\n| --: |\n|   1 |\n| nan |\n"
    assert markdown_table([{"x": "a"}]) == "| x |\n| --- |\n| a |\n"


def test_a_column_with_a_word_in_it_is_one_of_words():
    rows = [{"value": "32", "unit": "MiB"}, {"value": "none", "unit": ""}, {"value": -1.5}]
    assert text_table(rows).splitlines() == ["value  unit", "32     MiB", "none   ", "-1.5   "]


def test_a_table_of_seeds_has_mean_and_deviation_where_they_differ():
    seeds = [
        [{"model": "crate_mae", "accuracy": 0.8, "seconds": 400.0}, {"model": "pixels", "accuracy": 0.7}],
        [{"model": "crate_mae", "accuracy": 0.9, "seconds": 410.0}, {"model": "pixels", "accuracy": 0.7}],
    ]
    assert summarise(seeds) == [
        {"model": "crate_mae", "accuracy": "0.8500 ± 0.0707", "seconds": "405 ± 7"},
        {"model": "pixels", "accuracy": "0.7"},
    ]
    assert summarise(seeds[:1])[0] == {"model": "crate_mae", "accuracy": "0.8", "seconds": "400"}
