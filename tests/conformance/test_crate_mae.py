"""Transformers' own common tests on the classes of CRATE-MAE and CRATE.

What the mixins skip by themselves (accelerators, flash attention, text and generative models) shows in pytest's
summary; what is switched off here has its reason beside it.
"""

import unittest

import torch
from hf_conformance import test_modeling_common
from hf_conformance.test_backbone_common import BackboneTesterMixin
from hf_conformance.test_configuration_common import ConfigTester
from hf_conformance.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from hf_conformance.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor

from crate_mae_hf import (
    CrateBackbone,
    CrateConfig,
    CrateForImageClassification,
    CrateMaeBackbone,
    CrateMaeConfig,
    CrateMaeForImageClassification,
    CrateMaeForPreTraining,
    CrateMaeImageProcessor,
    CrateMaeImageProcessorPil,
    CrateMaeModel,
    CrateModel,
)

# The mixins know a class's task by its name in these tables; without an entry they skip labels and training.
for table, model_classes in {
    "MODEL_MAPPING_NAMES": (CrateMaeModel, CrateModel),
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": (CrateMaeForPreTraining,),
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": (CrateMaeForImageClassification, CrateForImageClassification),
    "MODEL_FOR_BACKBONE_MAPPING_NAMES": (CrateMaeBackbone, CrateBackbone),
}.items():
    ours = {model_class.config_class.model_type: model_class.__name__ for model_class in model_classes}
    setattr(test_modeling_common, table, {**getattr(test_modeling_common, table), **ours})


class CrateMaeModelTester:
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


class CrateMaeModelTest(ModelTesterMixin, unittest.TestCase):
    config_class = CrateMaeConfig
    all_model_classes = (CrateMaeModel, CrateMaeForPreTraining, CrateMaeForImageClassification, CrateMaeBackbone)
    test_resize_embeddings = False  # there is no vocabulary
    test_can_init_all_missing_weights_before_2023 = True  # the gate for old models: keep the initialisation test

    def setUp(self):
        self.model_tester = CrateMaeModelTester(self, self.config_class)
        self.config_tester = ConfigTester(self, self.config_class, has_text_modality=False, hidden_size=36)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class is CrateMaeForPreTraining:  # the mask has to be the same in every pass
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


class CrateModelTest(CrateMaeModelTest):
    config_class = CrateConfig
    all_model_classes = (CrateModel, CrateForImageClassification, CrateBackbone)


class CrateMaeBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (CrateMaeBackbone,)
    config_class = CrateMaeConfig

    def setUp(self):
        self.model_tester = CrateMaeModelTester(self, self.config_class)
        get_config = self.model_tester.get_config
        self.model_tester.get_config = lambda: get_config(out_features=["stage1", "stage2"])


class CrateBackboneTest(CrateMaeBackboneTest):
    all_model_classes = (CrateBackbone,)
    config_class = CrateConfig


class CrateMaeImageProcessorTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):  # the mixin would look this folder's name up in the library
        return {"torchvision": CrateMaeImageProcessor, "pil": CrateMaeImageProcessorPil}


class CrateMaeImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = CrateMaeImageProcessorTester

    @unittest.skip("starts a process that knows Transformers only; tests/core runs without torchvision for real")
    def test_pil_can_run_without_torchvision(self):
        pass
