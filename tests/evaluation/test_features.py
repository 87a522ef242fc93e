import numpy as np
import PIL.Image
import torch

from crate_mae_hf import CrateMaeImageProcessor, CrateMaeModel
from crate_mae_hf.evaluation.features import extract_features, preprocess


def test_features_are_what_the_model_gives(config):
    model = CrateMaeModel(config).train()
    config.hidden_dropout_prob = 0.5
    pixel_values = torch.randn(7, 3, 32, 32)
    features = extract_features(model, pixel_values, batch_size=3)
    assert model.training  # left as it was
    tokens = model.eval()(pixel_values).last_hidden_state.detach()
    np.testing.assert_allclose(features["cls"], tokens[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features["mean"], tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(features["cls_mean"], np.hstack([features["cls"], features["mean"]]))


def test_preprocessing_in_chunks(config):
    processor = CrateMaeImageProcessor.from_config(config)
    images = [PIL.Image.new("RGB", (30 + number, 40), (number * 20, 0, 0)) for number in range(7)]
    expected = processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(preprocess(processor, images, batch_size=3), expected, atol=1e-6, rtol=0)
