"""Images for pre-training on their colours."""

from collections.abc import Mapping
from typing import Any

import torch

from .seeded import SeededDataset


class ColorDataset(SeededDataset):
    """Images that are all in colour, for a model that masks nothing; each item is `pixel_values`."""

    needs_color = True

    def build_item(self, pixel_values: torch.Tensor, record: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": pixel_values}
