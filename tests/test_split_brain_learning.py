"""A split-brain autoencoder learns from photographs: to predict, and features that tell one photograph from another."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from crate_mae_hf import CrateSplitBrainConfig, CrateSplitBrainForPreTraining
from crate_mae_hf.adapters import inference
from crate_mae_hf.evaluation.colors import color_errors

STEPS, BATCH_SIZE, SIZE = 1500, 128, 16  # 600 steps teach too little in one of three seeds
Split = tuple[torch.Tensor, np.ndarray]


def cut_photographs(seed: int = 0) -> tuple[Split, Split]:
    """Patches of the left halves of all photographs and of the right halves, with their photograph as label."""
    script = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "data" / "photo_patches.py"))
    generator = np.random.default_rng(seed)
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    paths = script["find_photographs"](None)
    for path in paths:
        with PIL.Image.open(path) as photograph:
            for split, half in script["halves"](photograph.convert("RGB")).items():
                patches = script["draw_patches"](half, SIZE, script["NUM_PATCHES"][split], generator)
                images[split] += map(np.asarray, patches)
    train, test = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) / 255 for part in images.values())
    labels = [np.repeat(np.arange(len(paths)), number) for number in script["NUM_PATCHES"].values()]
    return (train, labels[0]), (test, labels[1])


def build(seed: int) -> CrateSplitBrainForPreTraining:
    torch.manual_seed(seed)
    config = CrateSplitBrainConfig(
        image_size=SIZE, patch_size=4, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, mssa_init_scale=0.1
    )
    return CrateSplitBrainForPreTraining(config)


def pre_train(model: CrateSplitBrainForPreTraining, images: torch.Tensor, seed: int, steps: int = STEPS) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        batch = images[torch.randint(len(images), (BATCH_SIZE,), generator=generator)]
        if torch.rand((), generator=generator) < 0.5:
            batch = batch.flip(-1)
        loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def probe(features: tuple[np.ndarray, np.ndarray], train: Split, test: Split) -> float:
    """Accuracy of a linear probe: which photograph the other half's patches come from."""
    scaler = StandardScaler().fit(features[0])
    classifier = LogisticRegression(max_iter=2000).fit(scaler.transform(features[0]), train[1])
    return classifier.score(scaler.transform(features[1]), test[1])


def probe_towers(model: CrateSplitBrainForPreTraining, train: Split, test: Split) -> dict[str, float]:
    """Accuracies of both towers, of the one that sees lightness and of the one that sees colour."""
    with inference(model):
        both = [
            model.crate_split_brain(images).last_hidden_state[:, 1:].mean(dim=1).numpy() for images, _ in (train, test)
        ]
    half = both[0].shape[1] // 2
    halves = {"both": slice(None), "lightness": slice(half), "color": slice(half, None)}
    return {name: probe((both[0][:, part], both[1][:, part]), train, test) for name, part in halves.items()}


def measure(seed: int, steps: int = STEPS) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Errors on the right halves, accuracies after pre-training, and accuracies with random weights."""
    train, test = cut_photographs()
    model = build(seed)
    random = probe_towers(model, train, test)
    pre_train(model, train[0], seed, steps)
    return color_errors(model, test[0].split(500)), probe_towers(model, train, test), random


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image has the photographs")
@pytest.mark.parametrize("seed", [0, 1])
def test_both_towers_learn(seed):
    errors, learned, random = measure(seed)
    assert errors["loss_ab"] < errors["constant_loss_ab"]
    assert errors["loss_l"] < errors["constant_loss_l"]
    assert learned["both"] > random["both"]
    assert learned["both"] > max(learned["lightness"], learned["color"])
