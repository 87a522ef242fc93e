"""Transformers' own common tests on the classes of every model in the list of models.

What the mixins skip by themselves (accelerators, flash attention, text and generative models) shows in pytest's
summary; what is switched off here has its reason beside it.
"""

import inspect
import unittest

import torch
from hf_conformance import test_modeling_common
from hf_conformance.test_backbone_common import BackboneTesterMixin
from hf_conformance.test_configuration_common import ConfigTester
from hf_conformance.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from hf_conformance.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.modeling_outputs import SemanticSegmenterOutput

from crate_mae_hf import CrateMaeImageProcessor, CrateMaeImageProcessorPil
from crate_mae_hf.registry import MODELS

# The mixins know a class's task by its name in these tables; without an entry they skip labels and training.
TABLES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForMaskedImageModeling": "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoBackbone": "MODEL_FOR_BACKBONE_MAPPING_NAMES",
}
for auto_class, table in TABLES.items():
    ours = {
        model_type: row.model_classes[auto_class].__name__
        for model_type, row in MODELS.items()
        if auto_class in row.model_classes
    }
    setattr(test_modeling_common, table, {**getattr(test_modeling_common, table), **ours})


class SmallModelTester:
    """A small configuration and inputs for it."""

    def __init__(self, parent, config_class):
        self.parent = parent
        self.config_class = config_class
        self.batch_size = 3
        self.image_size = 16
        self.patch_size = 4
        self.num_patches = 16
        self.num_masks = 3
        self.mask_length = self.num_patches
        self.num_channels = 3
        self.num_labels = 4
        self.hidden_size = 32
        self.num_hidden_layers = 2
        self.num_attention_heads = 4
        self.is_training = True
        self.seq_length = self.num_patches + 1
        self.encoder_seq_length = self.seq_length

    def get_config(self, **overrides):
        return self.config_class(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            num_labels=self.num_labels,
            **overrides,
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), {"pixel_values": pixel_values}

    def prepare_config_and_inputs(self):
        config, inputs = self.prepare_config_and_inputs_for_common()
        return config, inputs["pixel_values"], ids_tensor([self.batch_size], self.num_labels)


class ModelTests(ModelTesterMixin):
    """The tests of all classes of a row; `row` is set below."""

    test_resize_embeddings = False  # there is no vocabulary
    test_can_init_all_missing_weights_before_2023 = True  # the gate for old models: keep the initialisation test

    def setUp(self):
        self.model_tester = SmallModelTester(self, self.row.config_class)
        self.config_tester = ConfigTester(self, self.row.config_class, has_text_modality=False, hidden_size=48)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if "noise" in inspect.signature(model_class.forward).parameters:
            # The mask has to be the same in every pass.
            shape = (inputs_dict["pixel_values"].shape[0], self.model_tester.num_patches)
            inputs_dict["noise"] = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("images have no input embeddings to pass")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)
            assert model.get_output_embeddings() is None


class BackboneTests(BackboneTesterMixin):
    """The tests of a row's backbone; `row` is set below."""

    def setUp(self):
        self.model_tester = SmallModelTester(self, self.config_class)
        get_config = self.model_tester.get_config
        self.model_tester.get_config = lambda: get_config(out_features=["stage1", "stage2"])


def add_test_case(row, tests, model_classes):
    """Put a test case where pytest finds it, by a name such as `CrateMaeModelTest` or `CrateMaeBackboneTest`."""
    name = row.config_class.__name__.replace("Config", tests.__name__.removesuffix("s"))
    settings = {"row": row, "config_class": row.config_class, "all_model_classes": tuple(model_classes)}
    globals()[name] = type(name, (tests, unittest.TestCase), {**settings, "__module__": __name__})


for row in MODELS.values():
    add_test_case(row, ModelTests, row.model_classes.values())
    if "AutoBackbone" in row.model_classes:
        add_test_case(row, BackboneTests, [row.model_classes["AutoBackbone"]])


class CrateMaeImageProcessorTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):  # the mixin would look this folder's name up in the library
        return {"torchvision": CrateMaeImageProcessor, "pil": CrateMaeImageProcessorPil}

    def prepare_post_process_semantic_segmentation_inputs(self):  # of a size with a height and a width
        shape = {"num_labels": 5, "height": 18, "width": 16}
        return {"outputs": SemanticSegmenterOutput(logits=torch.randn(self.batch_size, *shape.values()))}, shape


class CrateMaeImageProcessorTest(PostProcessSemanticSegmentationTestMixin, ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = CrateMaeImageProcessorTester

    @unittest.skip("starts a process that knows Transformers only; tests/core runs without torchvision for real")
    def test_pil_can_run_without_torchvision(self):
        pass
