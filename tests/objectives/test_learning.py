"""ViC-MAE learns what masked reconstruction alone does not: features that tell digits apart wherever they stand."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from crate_mae_hf import CrateMaeConfig, CrateMaeForPreTraining
from crate_mae_hf.adapters import inference
from crate_mae_hf.objectives.vic_mae import VicMae

STEPS, PAIRS, NUM_TRAIN = 600, 96, 1200


def draw_frames(digits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A frame of each clip: its digit at another place, 2 pixels from its own at most, in other light, noisy."""
    count = len(digits)
    offsets = torch.randint(0, 5, (count, 2), generator=generator)
    rows, columns = (torch.arange(16) + offsets[:, axis : axis + 1] for axis in (0, 1))
    padded = functional.pad(digits, (2, 2, 2, 2))
    frames = padded[torch.arange(count)[:, None, None], rows.unsqueeze(2), columns.unsqueeze(1)]
    contrast = 0.6 + 0.8 * torch.rand(count, 1, 1, generator=generator)
    frames = frames * contrast + 0.15 * torch.randn(frames.shape, generator=generator)
    return ((frames - 0.2) / 0.4).unsqueeze(1)


def probe(model: CrateMaeForPreTraining, train: tuple, test: tuple) -> float:
    """Accuracy of a linear probe on the mean of the patch tokens."""
    with inference(model):
        features = [model.crate_mae(images).last_hidden_state[:, 1:].mean(dim=1).numpy() for images, _ in (train, test)]
    scaler = StandardScaler().fit(features[0])
    classifier = LogisticRegression(max_iter=2000).fit(scaler.transform(features[0]), train[1])
    return classifier.score(scaler.transform(features[1]), test[1])


def train_and_probe(contrastive_weight: float, reconstruction_weight: float, seed: int, steps: int = STEPS) -> float:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = CrateMaeConfig(
        image_size=16,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        decoder_num_hidden_layers=1,
        mask_ratio=0.5,
        norm_pix_loss=True,
    )
    objective = VicMae(
        CrateMaeForPreTraining(config),
        contrastive_weight=contrastive_weight,
        reconstruction_weight=reconstruction_weight,
        projector_size=128,
        projection_size=32,
    )
    data = load_digits()
    digits, labels = torch.from_numpy(data.images).float().unsqueeze(1) / 16, data.target
    digits = functional.interpolate(digits, 16, mode="bilinear", antialias=True).squeeze(1)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for _ in range(steps):
        clips = digits[train[torch.randperm(NUM_TRAIN, generator=generator)[:PAIRS]]]
        pixel_values = torch.stack([draw_frames(clips, generator) for _ in range(2)], dim=1)
        loss = objective(pixel_values, torch.rand(PAIRS, 2, 16, generator=generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frames = {name: draw_frames(digits[part], generator) for name, part in (("train", train), ("test", test))}
    return probe(objective.autoencoder, (frames["train"], labels[train]), (frames["test"], labels[test]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_vic_mae_beats_reconstruction_alone(seed):
    alone = train_and_probe(0.0, 1.0, seed)
    vic_mae = train_and_probe(0.03, 0.97, seed)
    print(f"\nseed {seed}: reconstruction alone {alone:.3f}, ViC-MAE {vic_mae:.3f}")
    assert vic_mae >= alone + 0.04
