from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments

from crate_mae_hf.cli import clear_errors, parse_arguments
from crate_mae_hf.training.arguments import find_checkpoint


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
    def find(overwrite=False, **arguments):
        return find_checkpoint(TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments), overwrite)

    assert find() is None
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        find(resume_from_checkpoint="true")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-12").mkdir()
    with pytest.raises(ValueError, match=r"is not empty.*--resume_from_checkpoint.*--overwrite_output_dir"):
        find()
    assert find(overwrite=True) is None
    assert find(resume_from_checkpoint="true") == str(tmp_path / "checkpoint-12")
    assert find(resume_from_checkpoint=str(tmp_path / "checkpoint-3")) == str(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=r"there is no checkpoint .*checkpoint-4"):
        find(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_scripts_end_with_one_line():
    with pytest.raises(SystemExit, match=r"^error: `ratio` must be 1, got 2\.$"), clear_errors():
        raise ValueError("`ratio` must be 1, got 2.")
    with pytest.raises(SystemExit, match=r"^error: Cannot read the image a\.png$"), clear_errors():
        raise ValueError(
            'Caught it.\nTraceback (most recent call last):\n  File "x"\nBadImageError: Cannot read the image a.png'
        )
    with pytest.raises(ZeroDivisionError), clear_errors():
        raise ZeroDivisionError  # not the user's
