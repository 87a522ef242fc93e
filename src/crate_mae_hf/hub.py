"""Model cards, and pushing a repository to the Hub that loads wherever Transformers does.

    python -m crate_mae_hf.hub FOLDER REPO_ID --dataset ILSVRC/imagenet-1k --license mit

The files themselves come from `save_pretrained`: importing `crate_mae_hf` registers the classes so that the code of the
model travels with whatever is saved, out of a Trainer as well.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

import crate_mae_hf

from .configuration_crate import CrateConfig, CrateEncoderConfig
from .configuration_crate_mae import CrateMaeConfig

PICTURE = "reconstruction.png"
# The metrics of a Trainer, and of whatever measured the model afterwards.
METRICS = ("all_results.json", "metrics.json")
# What a Trainer leaves in its folder and nobody loads; among it every pickle.
NOT_PUSHED = ["checkpoint-*", "runs/*", "*.bin", "*.pt", "*.pth", "_*"]
# What is written beside the metrics and tells nothing about the model.
NO_METRIC = re.compile(r"(epochs?|steps?|samples|runtime|seconds?|total_flos)$")
CONFIGS = {config.model_type: config for config in (CrateMaeConfig, CrateConfig)}

FEATURES_SNIPPET = """\
from transformers import pipeline

features = pipeline("image-feature-extraction", model="{model_id}", trust_remote_code=True)
"""
AUTOENCODER_SNIPPET = """\
from transformers import AutoModelForPreTraining, pipeline

features = pipeline("image-feature-extraction", model="{model_id}", trust_remote_code=True)
autoencoder = AutoModelForPreTraining.from_pretrained("{model_id}", trust_remote_code=True)
"""
CLASSIFIER_SNIPPET = """\
from transformers import pipeline

classifier = pipeline("image-classification", model="{model_id}", trust_remote_code=True)
"""
# Of each kind of model, by the end of its class's name: introduction, snippet, and settings beside the encoder's.
KINDS = {
    "ForPreTraining": (
        "A {name}, pre-trained without labels.",
        AUTOENCODER_SNIPPET,
        ("decoder_num_hidden_layers", "mask_ratio", "norm_pix_loss"),
    ),
    "ForImageClassification": ("A {name} image classifier.", CLASSIFIER_SNIPPET, ("pooling", "num_labels")),
    "": ("The encoder of a {name}.", FEATURES_SNIPPET, ()),
}
NAMES = {"crate_mae": "CRATE-MAE", "crate": "CRATE"}
TAGS = {"crate_mae": ["crate_mae", "crate", "masked-autoencoder"], "crate": ["crate"]}
CARD = """\
---
{metadata}
---

# {name}

{introduction}

{paper}
Unless stated below, this is not one of the authors' checkpoints.
{picture}
## How to use

```python
{snippet}```

`trust_remote_code=True` runs the code in this repository. It is not needed after `import crate_mae_hf`.

## Model

{model}
`ista_lambda` and `ista_step_size` are no weights: a checkpoint gives the same features only with the values above.

## Training data

{data}

## Training

{recipe}
## Results

{results}
## Limits

- A model carries the biases of the images it was trained on; what its features are worth on other kinds of images is
  untested here.
{limits}
## Citation

```bibtex
{citation}```
"""


PAPERS = {
    "crate_mae": """\
CRATE-MAE is a masked autoencoder whose layers are derived rather than designed: each encoder layer
compresses the tokens against learned subspaces (attention with one matrix for query, key and value), then takes one
step towards a sparse, non-negative code. It is described in
[Masked Completion via Structured Diffusion with White-Box Transformers](https://arxiv.org/abs/2404.02446)
(Pai, Buchanan, Wu, Yu, Ma; ICLR 2024).""",
    "crate": """\
CRATE is an image classifier whose layers are derived rather than designed: each layer compresses the tokens against
learned subspaces (attention with one matrix for query, key and value), then takes one step towards a sparse,
non-negative code. It is described in
[White-Box Transformers via Sparse Rate Reduction](https://arxiv.org/abs/2306.01129)
(Yu, Buchanan, Pai, Chu, Wu, Tong, Haeffele, Ma; NeurIPS 2023).""",
}
CITATIONS = {
    "crate_mae": """\
@inproceedings{pai2024masked,
  title={Masked Completion via Structured Diffusion with White-Box Transformers},
  author={Druv Pai and Sam Buchanan and Ziyang Wu and Yaodong Yu and Yi Ma},
  booktitle={International Conference on Learning Representations},
  year={2024}
}
""",
    "crate": """\
@inproceedings{yu2023white,
  title={White-Box Transformers via Sparse Rate Reduction},
  author={Yaodong Yu and Sam Buchanan and Druv Pai and Tianzhe Chu and Ziyang Wu and Shengbang Tong and
    Benjamin D. Haeffele and Yi Ma},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}
""",
}
RECONSTRUCTION_LIMIT = """\
- Reconstructions are the mean of what fits the visible patches, hence blurred; they are no evidence of what was behind
  a mask.
"""


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, nothing where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested groups of values as one level, with names such as `eval/loss`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def format_table(header: tuple[str, str], values: Mapping[str, Any], otherwise: str) -> str:
    """Return names and values as a Markdown table, or a sentence where there are none."""
    if not values:
        return f"{otherwise}\n"
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in values.items()]
    return "\n".join(f"| {name} | {value} |" for name, value in [header, ("---", "---"), *rows]) + "\n"


def create_model_card(
    folder: str | Path,
    *,
    model_id: str | None = None,
    dataset: str | None = None,
    data: str | None = None,
    license: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Return the card of a saved model; its `save` writes it.

    Args:
        folder: Folder with `config.json` and, where there are any, `all_results.json`, `metrics.json`,
            `trainer_state.json` and `reconstruction.png`.
        model_id: Repository on the Hub, for the title and the snippet; the folder's name when left out.
        dataset: Id of the training data on the Hub.
        data: What the model was trained on, in words.
        license: Licence of the weights, as the Hub names it.
        recipe: Settings of the training run by name. Steps, epochs and batch size are read off `trainer_state.json`.
        metrics: Measured values by name; read off `all_results.json` and `metrics.json` when left out. All are shown,
            but the metadata's results of the model leave out groups, such as comparisons with baselines, and what was
            measured in training. What is no decimal number, such as a seed, is listed as a setting.

    Raises:
        ValueError: If the folder holds no CRATE-MAE or CRATE model.
    """
    folder = Path(folder)
    config = read_config(folder)
    model_id = model_id or folder.resolve().name
    architecture = (config.architectures or [config.auto_classes["AutoModel"].split(".")[1]])[0]
    kind = next(kind for kind in KINDS if architecture.endswith(kind))
    introduction, snippet, head = KINDS[kind]
    pipeline_tag = "image-classification" if kind == "ForImageClassification" else "image-feature-extraction"

    if metrics is None:
        metrics = {name: value for file in METRICS for name, value in read_json(folder / file).items()}
    values = {name: value for name, value in flatten(metrics).items() if not NO_METRIC.search(name)}
    measured = {name: value for name, value in values.items() if isinstance(value, float)}
    eval_results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=dataset or "custom",
            dataset_name=dataset or str(data),
            metric_type=next((known for known in ("accuracy", "loss") if known in name), name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in measured.items()
        if (dataset or data) and name in metrics and not name.startswith("train_")
    ]
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[*TAGS[config.model_type], "white-box", "vision"],
        datasets=[dataset] if dataset else None,
        model_name=model_id.split("/")[-1],
        eval_results=eval_results or None,
    )

    state = read_json(folder / "trainer_state.json")
    names = {"global_step": "steps", "epoch": "epochs", "train_batch_size": "batch size per device"}
    trained = {name: state[key] for key, name in names.items() if state.get(key) is not None}
    trained |= {name: value for name, value in values.items() if name not in measured}
    fields = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
    model = {"class": f"`{architecture}`"}
    if hasattr(crate_mae_hf, architecture):
        with torch.device("meta"):
            model["parameters"] = f"{getattr(crate_mae_hf, architecture)(config).num_parameters():,}"
    model |= {f"`{name}`": getattr(config, name) for name in (*fields, "ista_step_size", "ista_lambda", *head)}

    link = f"[{dataset}](https://huggingface.co/datasets/{dataset})" if dataset else None
    picture = "\n![Masked image, reconstruction and original](reconstruction.png)\n"
    return ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            name=model_id.split("/")[-1],
            introduction=introduction.format(name=NAMES[config.model_type]),
            paper=PAPERS[config.model_type],
            picture=picture if (folder / PICTURE).is_file() else "",
            snippet=snippet.format(model_id=model_id),
            model=format_table(("setting", "value"), model, ""),
            data=" ".join(filter(None, (link, data))) or "Not stated.",
            recipe=format_table(("setting", "value"), {**(recipe or {}), **trained}, "Not stated."),
            results=format_table(("metric", "measured"), measured, "Nothing was measured."),
            limits=RECONSTRUCTION_LIMIT if kind == "ForPreTraining" else "",
            citation=CITATIONS[config.model_type],
        )
    )


def read_config(folder: Path) -> CrateEncoderConfig:
    """Return the configuration in a folder.

    Raises:
        ValueError: If there is none, or one of another model.
    """
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in CONFIGS:
        found = f"holds a model of type {model_type!r}" if model_type else "has no config.json"
        raise ValueError(
            f"`folder` must hold a CRATE-MAE or CRATE model saved with `save_pretrained`, {folder} {found}."
        )
    return CONFIGS[model_type].from_pretrained(folder)


def check_folder(folder: Path) -> None:
    """Check that a folder has everything that the Auto classes and pipelines load.

    Raises:
        ValueError: Naming what is missing and how to write it.
    """
    read_config(folder)
    # The image processor brings the code of both models along, and does not load without it.
    code = {f"{name.split('.')[0]}.py" for config in CONFIGS.values() for name in config.auto_classes.values()}
    needed = ["preprocessor_config.json", "image_processing_crate_mae.py", *sorted(code)]
    missing = [name for name in needed if not (folder / name).is_file()]
    if not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ValueError(
            f"`folder` {folder} lacks {', '.join(missing)}: save model and image processor to it with their "
            "`save_pretrained`."
        )


def check_token(api: HfApi) -> None:
    """Check that the Hub accepts the token, and for writing.

    Raises:
        ValueError: If there is no token, or it is rejected, or it only reads.
        ConnectionError: If the Hub does not answer.
    """
    advice = "log in with `hf auth login`, or pass one with write access; nothing was uploaded."
    try:
        user = api.whoami()
    except LocalTokenNotFoundError as error:
        raise ValueError(f"`token` is needed to push, found none: {advice}") from error
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise ValueError(f"`token` was rejected by the Hub: {advice}") from error
    except HTTPError as error:
        raise ConnectionError(f"The Hub cannot be reached ({error}); nothing was uploaded.") from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"`token` of {user.get('name')} may only read: {advice}")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload model",
) -> str:
    """Push a saved model to the Hub, after checking that it is complete and that the token is good.

    A card is written to the folder where it has none; a `README.md` that is there goes up as it is. Intermediate
    checkpoints, logs and pickles of a training run stay behind.

    Args:
        folder: Folder with a model and its image processor.
        repo_id: Repository, `name` or `owner/name`; created where it does not exist.
        token: Access token; the one of `hf auth login` or `HF_TOKEN` when left out.
        private: Whether a new repository is private.
        commit_message: First line of the commit.

    Returns:
        Address of the repository.

    Raises:
        ValueError: If the folder is incomplete, or the token missing, rejected or read-only.
    """
    folder = Path(folder)
    check_folder(folder)
    api = HfApi(token=token)
    check_token(api)
    if not (folder / "README.md").exists():
        create_model_card(folder, model_id=repo_id).save(folder / "README.md")
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id, folder_path=folder, commit_message=commit_message, ignore_patterns=NOT_PUSHED
    )
    return str(url)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_mae_hf.hub", description="Push a saved CRATE-MAE or CRATE model to the Hub, with a card."
    )
    parser.add_argument("folder", type=Path, help="folder with a model and its image processor")
    parser.add_argument("repo_id", help="repository, name or owner/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--dataset", help="for the card: id of the training data on the Hub")
    parser.add_argument("--data", help="for the card: the training data in words")
    parser.add_argument("--license", help="for the card: licence of the weights, as the Hub names it")
    options = parser.parse_args(arguments)
    readme = options.folder / "README.md"
    card = {name: getattr(options, name) for name in ("dataset", "data", "license")}
    try:
        check_folder(options.folder)
        if any(card.values()):
            if readme.exists():
                raise ValueError(
                    f"{readme} is there already and would be pushed as it is: move it, or drop the options."
                )
            create_model_card(options.folder, model_id=options.repo_id, **card).save(readme)
        print(push_folder(options.folder, options.repo_id, private=options.private))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
