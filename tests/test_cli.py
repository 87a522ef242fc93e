import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError

from crate_mae_hf.cli import check_output_dir, clear_errors, parse_arguments


@dataclass
class Arguments:
    size: str = "base"
    ratio: float = 0.75
    flip: bool = True
    values: list[float] = field(default_factory=list)
    steps: int = 1
    kind: Literal["no", "some"] = "some"
    name: str | None = None
    options: dict | str | None = None


@dataclass
class Sources:
    alternatives: ClassVar[dict[tuple[str, ...], tuple[str, ...]]] = {("shop",): ("shelf",), ("garden", "field"): ()}
    shop: str | None = None
    shelf: str = "top"
    garden: str | None = None
    field: str | None = None


def parse(*argv) -> Arguments:
    (arguments,) = parse_arguments((Arguments,), argv)
    return arguments


def test_flags_alone():
    assert parse() == Arguments()
    assert parse("--ratio", "0.5", "--values", "1", "2") == Arguments(ratio=0.5, values=[1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recipe.yaml", "size: tiny\nratio: 5e-1\nflip: false\nvalues: [1, 2]\n"),
        ("recipe.json", '{"size": "tiny", "ratio": 0.5, "flip": false, "values": [1, 2]}'),
    ],
)
def test_flags_win_over_a_recipe(tmp_path, name, text):
    recipe = tmp_path / name
    recipe.write_text(text)
    assert parse(str(recipe)) == Arguments("tiny", 0.5, False, [1, 2])
    assert parse(str(recipe), "--size", "large", "--flip", "true") == Arguments("large", 0.5, True, [1, 2])


def test_bad_recipes_get_a_clear_error(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    with pytest.raises(ValueError, match=r"recipe.yaml does not exist"):
        parse(str(recipe))
    recipe.write_text("- size")
    with pytest.raises(ValueError, match="must map arguments to values"):
        parse(str(recipe))
    recipe.write_text("sise: tiny")
    with pytest.raises(ValueError, match=r"recipe.yaml sets sise, which this script does not know"):
        parse(str(recipe))
    recipe.write_bytes(b"size: \xff")
    with pytest.raises(ValueError, match=r"recipe.yaml: .*can't decode byte"):
        parse(str(recipe))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recipe.yaml", "size: tiny\nvalues: [1\nratio: 1", ", line 3: expected ',' or ']'"),
        ("recipe.yaml", "size: tiny\n\tratio: 1", ", line 2: found character '\\t'"),
        ("recipe.yaml", "size: tiny\nratio: 1\nsize: base", ", line 3: size is set twice."),
        ("recipe.yaml", "size: tiny\noptions: {a: 1, a: 2}", ", line 2: a is set twice."),
        ("recipe.json", '{\n"size": "tiny",\n}', ", line 3: "),
        ("recipe.json", '{"size": "tiny", "size": "base"}', ": size is set twice."),
        ("recipe.yaml", "ratio: fast", " sets `ratio` to 'fast': it must be float."),
        ("recipe.yaml", "ratio: [1]", " sets `ratio` to [1]: it must be float."),
        ("recipe.yaml", "ratio: true", " sets `ratio` to True: it must be float."),
        ("recipe.yaml", "ratio: null", " sets `ratio` to None: it must be float."),
        ("recipe.yaml", "flip: maybe", " sets `flip` to 'maybe': it must be bool."),
        ("recipe.yaml", "flip: 2", " sets `flip` to 2: it must be bool."),
        ("recipe.yaml", "steps: 1.5", " sets `steps` to 1.5: it must be int."),
        ("recipe.yaml", "values: 1", " sets `values` to 1: it must be list[float]."),
        ("recipe.yaml", "values: [a]", " sets `values` to ['a']: it must be"),
        ("recipe.yaml", "kind: all", " sets `kind` to 'all': it must be one of no, some."),
        ("recipe.yaml", "name: [a]", " sets `name` to ['a']: it must be str | None."),
        ("recipe.yaml", "options: [a]", " sets `options` to ['a']: it must be dict | str | None."),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^The recipe {re.escape(str(tmp_path / name) + message)}"):
        parse(str(tmp_path / name))
    assert capsys.readouterr().err == ""


def test_values_in_a_recipe_get_the_type_of_the_argument(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("ratio: 1e-3\nvalues: [1e-3, 2]\nsteps: 3.0\nkind: no\nname: 5\noptions: {a: 1}\nflip: 'no'")
    arguments = parse(str(recipe))
    assert arguments == Arguments("base", 0.001, False, [0.001, 2.0], 3, "no", "5", {"a": 1})
    assert type(arguments.steps) is int
    recipe.write_text("name: true\noptions: text")
    assert (parse(str(recipe)).name, parse(str(recipe)).options) == ("true", "text")


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("shop: s\nshelf: low", ["--garden", "g"], Sources(garden="g")),
        ("shop: s\nshelf: low", ["--gard=g"], Sources(garden="g")),
        ("shop: s\nshelf: low", ["--field", "f", "--shelf", "mid"], Sources(field="f", shelf="mid")),
        ("shop: s\nshelf: low", ["--shop", "t"], Sources(shop="t", shelf="low")),
        ("garden: g\nfield: f\nshelf: low", ["--shop", "s"], Sources(shop="s", shelf="low")),
        ("shelf: low", ["--garden", "g"], Sources(garden="g", shelf="low")),  # it describes no shop
        ("garden: g", ["--field", "f"], Sources(garden="g", field="f")),
        ("shop: s\ngarden: g", [], Sources(shop="s", garden="g")),  # for the script to refuse
    ],
)
def test_a_flag_drops_what_a_recipe_says_in_another_way(tmp_path, text, flags, expected):
    (tmp_path / "recipe.yaml").write_text(text)
    assert parse_arguments((Sources,), [str(tmp_path / "recipe.yaml"), *flags]) == (expected,)


def test_a_full_output_folder_is_kept(tmp_path):
    check_output_dir(tmp_path / "new", overwrite=False)
    check_output_dir(tmp_path, overwrite=False)
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(ValueError, match=r"^`output_dir` .* is not empty: choose .*`--overwrite_output_dir`\.$"):
        check_output_dir(tmp_path, overwrite=False)
    check_output_dir(tmp_path, overwrite=True)
    assert (tmp_path / "results.md").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=rf"`output_dir` {path} cannot be written to: .*file is no folder"):
            check_output_dir(path, overwrite=True)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(ValueError, match=rf"`output_dir` .* cannot be written to: {tmp_path} is read-only"):
        check_output_dir(tmp_path / "new" / "run", overwrite=False)


def test_scripts_end_with_one_line():
    with pytest.raises(SystemExit, match=r"^error: `ratio` must be 1, got 2\.$"), clear_errors():
        raise ValueError("`ratio` must be 1, got 2.")
    with pytest.raises(SystemExit, match=r"^error: Cannot read the image a\.png$"), clear_errors():
        raise ValueError(
            'Caught it.\nTraceback (most recent call last):\n  File "x"\nBadImageError: Cannot read the image a.png'
        )
    with pytest.raises(ZeroDivisionError), clear_errors():
        raise ZeroDivisionError  # not the user's
    with pytest.raises(RuntimeError, match="ours"), clear_errors():
        raise RuntimeError("ours")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "weights"), r"error: \[Errno 28\] No space left on device: 'weights'"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "error: .*is the disk full.*data/0"),
        (SafetensorError("No space left on device"), "error: No space left on device"),
        (StrictDataclassFieldValidationError("size", TypeError("not int")), "error: .*'size': TypeError: not int"),
        (KeyboardInterrupt(), "interrupted"),
        (KeyboardInterrupt("interrupted: go on so"), "interrupted: go on so"),
    ],
)
def test_what_is_no_mistake_of_the_program_ends_with_one_line_too(error, message):
    with pytest.raises(SystemExit, match=f"^{message}") as ended, clear_errors():
        raise error
    assert "\n" not in str(ended.value)
