"""The list of models, one row per model: registration, conversion, model cards and tests go through it.

Which classes a model has stands in its configuration's `auto_classes`, which travels to the Hub; which files of code it
consists of is found by following imports.
"""

import ast
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from .configuration_crate import CrateConfig, CrateEncoderConfig
from .configuration_crate_alpha import CrateAlphaConfig
from .configuration_crate_mae import CrateMaeConfig
from .configuration_crate_split_brain import CrateSplitBrainConfig


class ModelRow(NamedTuple):
    """A model: its configuration, and what a model card says of it."""

    name: str
    config_class: type[CrateEncoderConfig]
    tags: tuple[str, ...]
    paper: str  # a paragraph in Markdown
    citation: str  # BibTeX
    prediction_limits: str = ""  # of what it was pre-trained to predict, a line in Markdown

    @property
    def model_classes(self) -> dict[str, type[PreTrainedModel]]:
        """Name of an Auto class -> the class that it loads."""
        classes = {}
        for auto_class, reference in self.config_class.auto_classes.items():
            if auto_class != "AutoConfig":
                module, name = reference.split(".")
                classes[auto_class] = getattr(importlib.import_module(f".{module}", __package__), name)
        return classes


ROWS = [
    ModelRow(
        name="CRATE-MAE",
        config_class=CrateMaeConfig,
        tags=("crate_mae", "crate", "masked-autoencoder"),
        paper="""\
CRATE-MAE is a masked autoencoder whose layers are derived rather than designed: each encoder layer
compresses the tokens against learned subspaces (attention with one matrix for query, key and value), then takes one
step towards a sparse, non-negative code. It is described in
[Masked Completion via Structured Diffusion with White-Box Transformers](https://arxiv.org/abs/2404.02446)
(Pai, Buchanan, Wu, Yu, Ma; ICLR 2024).""",
        citation="""\
@inproceedings{pai2024masked,
  title={Masked Completion via Structured Diffusion with White-Box Transformers},
  author={Druv Pai and Sam Buchanan and Ziyang Wu and Yaodong Yu and Yi Ma},
  booktitle={International Conference on Learning Representations},
  year={2024}
}""",
        prediction_limits="""\
- Reconstructions are the mean of what fits the visible patches, hence blurred; they are no evidence of what was behind
  a mask.""",
    ),
    ModelRow(
        name="CRATE",
        config_class=CrateConfig,
        tags=("crate",),
        paper="""\
CRATE is an image classifier whose layers are derived rather than designed: each layer compresses the tokens against
learned subspaces (attention with one matrix for query, key and value), then takes one step towards a sparse,
non-negative code. It is described in
[White-Box Transformers via Sparse Rate Reduction](https://arxiv.org/abs/2306.01129)
(Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma; NeurIPS 2023).""",
        citation="""\
@inproceedings{yu2023white,
  title={White-Box Transformers via Sparse Rate Reduction},
  author={Yaodong Yu and Sam Buchanan and Druv Pai and Tianzhe Chu and Ziyang Wu and Shengbang Tong and
    Benjamin D. Haeffele and Yi Ma},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}""",
    ),
    ModelRow(
        name="CRATE-alpha",
        config_class=CrateAlphaConfig,
        tags=("crate_alpha", "crate"),
        paper="""\
CRATE-alpha is CRATE made to scale: each layer compresses the tokens against learned subspaces (attention with one
matrix for query, key and value), then takes two steps towards a sparse, non-negative code in an overcomplete
dictionary, and adds what the code stands for in a second dictionary. It is described in
[Scaling White-Box Transformers for Vision](https://arxiv.org/abs/2405.20299)
(Yang, Li, Pai, Zhou, Ma, Yu, Xie; NeurIPS 2024).""",
        citation="""\
@inproceedings{yang2024scaling,
  title={Scaling White-Box Transformers for Vision},
  author={Jinrui Yang and Xianhang Li and Druv Pai and Yuyin Zhou and Yi Ma and Yaodong Yu and Cihang Xie},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}""",
    ),
    ModelRow(
        name="split-brain CRATE",
        config_class=CrateSplitBrainConfig,
        tags=("crate_split_brain", "crate", "split-brain-autoencoder"),
        paper="""\
A split-brain CRATE is two encoders side by side, of which one sees the lightness of an image and the other its colour.
Pre-training lets each predict what the other one sees. Split-brain autoencoders are described in
[Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction](https://arxiv.org/abs/1611.09842)
(Zhang, Isola, Efros; CVPR 2017); the layers here are those of CRATE-MAE, where the paper has a convolutional network:
[Masked Completion via Structured Diffusion with White-Box Transformers](https://arxiv.org/abs/2404.02446)
(Pai, Buchanan, Wu, Yu, Ma; ICLR 2024).""",
        citation="""\
@inproceedings{zhang2017split,
  title={Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction},
  author={Richard Zhang and Phillip Isola and Alexei A. Efros},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}""",
        prediction_limits="""\
- Predicted colours are the mean of what fits the lightness, hence muted; they are no evidence of what colour a thing
  had.""",
    ),
]
# By model type.
MODELS = {row.config_class.model_type: row for row in ROWS}
# "CRATE-MAE or CRATE or ...", for messages.
MODEL_NAMES = " or ".join(row.name for row in ROWS)


def relative_imports(path: Path) -> list[str]:
    """Return the files beside a Python file that it imports, wherever the import stands: loading wants them all."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1)
    return [f"{node.module}.py" for node in imports if node.module]


def find_code(folder: Path, references: Iterable[str]) -> list[str]:
    """Return the Python files of the classes in an `auto_map`, and of what they import in turn, there or not.

    Args:
        folder: Folder of the files.
        references: "module.Class", with "owner/name--" in front where the map points into another repository.
    """
    waiting = [f"{reference.split('--')[-1].split('.')[0]}.py" for reference in references]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += relative_imports(folder / name) if (folder / name).is_file() else []
    return sorted(found)
