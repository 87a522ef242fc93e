"""Model cards, and pushing a saved model to the Hub so that it loads wherever Transformers does.

The files themselves come from `save_pretrained`: importing `crate_mae_hf` registers the classes so that the code of the
model travels with whatever is saved, out of a Trainer as well.
"""

from .cards import create_model_card
from .push import check_folder, push_folder

__all__ = ["check_folder", "create_model_card", "push_folder"]
