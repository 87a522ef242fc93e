"""Pushing a saved model to the Hub, after checking that it loads wherever Transformers does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

from ..loading import find_damaged_weights
from ..objectives.mlo_mae import MASKING
from ..objectives.objective import FILE as OBJECTIVE
from ..registry import find_code
from .cards import create_model_card, read_config, read_json

# What a Trainer leaves in its folder and nobody loads; among it every pickle.
NOT_PUSHED = ["checkpoint-*", "runs/*", "*.bin", "*.pt", "*.pth", "_*", "masks/*", OBJECTIVE, MASKING]


def check_folder(folder: str | Path) -> None:
    """Check that a folder has everything that the Auto classes and pipelines load.

    Args:
        folder: Folder with a model and its image processor.

    Raises:
        ValueError: Naming what is missing and how to write it.
    """
    folder = Path(folder)
    read_config(folder)
    missing: list[str] = []
    references: list[str] = []
    # The image processor's code brings that of all models along, and its file does not load without them.
    for name in ("config.json", "preprocessor_config.json"):
        auto_map = read_json(folder / name).get("auto_map", {})
        for reference in auto_map.values():
            references += [reference] if isinstance(reference, str) else reference
        if not auto_map:
            missing.append(f"an `auto_map` in {name}" if (folder / name).is_file() else name)
    missing += [name for name in find_code(folder, references) if not (folder / name).is_file()]
    index = read_json(folder / "model.safetensors.index.json")
    shards = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    missing += [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"`folder` {folder} lacks {', '.join(missing)}: save model and image processor to it with their "
            "`save_pretrained`."
        )
    if damaged := find_damaged_weights(folder):
        raise ValueError(f"`folder` {folder}: {damaged}")


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
    card: Mapping[str, Any] | None = None,
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
        card: Arguments of `create_model_card` for the card that is written.

    Returns:
        Address of the repository.

    Raises:
        ValueError: If the folder is incomplete, the token missing, rejected or read-only, or `card` is given and the
            folder has one.
    """
    folder = Path(folder)
    readme = folder / "README.md"
    check_folder(folder)
    if card and readme.exists():
        raise ValueError(f"{readme} is there already and would be pushed as it is: move it, or drop the options.")
    api = HfApi(token=token)
    check_token(api)  # before anything is written
    if not readme.exists():
        create_model_card(folder, **{"model_id": repo_id, **(card or {})}).save(readme)
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id, folder_path=folder, commit_message=commit_message, ignore_patterns=NOT_PUSHED
    )
    return str(url)
