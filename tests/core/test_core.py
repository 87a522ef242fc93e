"""What has to work with the core dependencies alone: `make test-core` runs this without torchvision and the extras."""

import numpy as np
import PIL.Image
import torch
from snippets import snippets
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining
from transformers.utils import is_torchvision_available

import crate_mae_hf
from crate_mae_hf import CrateMaeForPreTraining, CrateMaeImageProcessor, CrateMaeImageProcessorPil


def test_the_processor_is_the_one_that_can_run():
    backend = CrateMaeImageProcessor().backend
    assert backend == ("torchvision" if is_torchvision_available() else "pil")
    assert (CrateMaeImageProcessor is CrateMaeImageProcessorPil) is not is_torchvision_available()


def test_from_image_to_saved_model_and_back(config, tmp_path):
    processor = CrateMaeImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model = CrateMaeForPreTraining(config).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))
    loaded_processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded_processor) is CrateMaeImageProcessor
    inputs = loaded_processor([image, image.convert("RGBA")], return_tensors="pt")
    assert torch.equal(inputs.pixel_values, processor([image, image], return_tensors="pt").pixel_values)

    features = AutoModel.from_pretrained(tmp_path)(**inputs)
    assert features.last_hidden_state.shape == (2, 17, 32)
    noise = torch.rand(2, 16)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert isinstance(loaded, crate_mae_hf.CrateMaeForPreTraining)
    assert torch.equal(loaded(**inputs, noise=noise).loss, model(**inputs, noise=noise).loss)


def test_the_first_snippet_of_the_readme(tmp_path, monkeypatch, capsys):
    (snippet,) = snippets("README.md", "First look")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([8, 384]) torch.Size([8, 17, 384])\n"
    with PIL.Image.open("reconstruction.png") as picture:
        # Test images above, what the model saw of them in the middle, its answer below: closer to the images.
        original, masked, answer = np.split(np.asarray(picture, dtype=np.float32), 3)
    assert np.abs(answer - original).mean() < 0.5 * np.abs(masked - original).mean()
