import pytest

from crate_mae_hf.training.arguments import ScriptTrainingArguments


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 0},
        {"gradient_accumulation_steps": -2},
        {"per_device_train_batch_size": 0},
        {"per_device_eval_batch_size": 0},
        {"num_train_epochs": 0},
        {"num_train_epochs": float("nan")},
    ],
)
def test_numbers_of_images_and_epochs_are_positive(tmp_path, changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=rf"^`{name}` must be positive, got {value}\.$"):
        ScriptTrainingArguments(str(tmp_path), use_cpu=True, **changes)


def test_steps_instead_of_epochs(tmp_path):
    assert ScriptTrainingArguments(str(tmp_path), use_cpu=True, max_steps=3, num_train_epochs=0).max_steps == 3
