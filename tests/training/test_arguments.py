import pytest
from transformers import TrainingArguments

from crate_mae_hf.training.arguments import find_checkpoint


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
