from dataclasses import dataclass, field

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


def test_a_full_output_folder_is_kept(tmp_path):
    check_output_dir(tmp_path / "new", overwrite=False)
    check_output_dir(tmp_path, overwrite=False)
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(ValueError, match=r"^`output_dir` .* is not empty: choose .*`--overwrite_output_dir`\.$"):
        check_output_dir(tmp_path, overwrite=False)
    check_output_dir(tmp_path, overwrite=True)
    assert (tmp_path / "results.md").read_text() == "mine"
    assert not (tmp_path / "new").exists()


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
