"""Lay out Transformers' own common tests as an importable package, `hf_conformance`.

    python tests/conformance/assemble.py OUT

The wheel of Transformers has no tests; its source package has the test mixins, but not the folders that they import a
few helpers from. This script downloads the source package of the installed version, takes the mixins out of it, and
writes small stand-ins for those helpers beside them.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

import transformers

MIXINS = {
    "test_modeling_common.py",
    "test_backbone_common.py",
    "test_configuration_common.py",
    "test_image_processing_common.py",
    "test_training_mixin.py",
    "test_memory_cleanup_mixin.py",
}
STANDINS = {
    "hf_conformance/__init__.py": "",
    "hf_conformance/utils/__init__.py": "",
    "hf_conformance/generation/__init__.py": "",
    "hf_conformance/exporters/__init__.py": "",
    # What `ConfigTester` sets on every configuration.
    "hf_conformance/utils/test_configuration_utils.py": """\
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["AnyModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    # No model of ours generates.
    "hf_conformance/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "hf_conformance/exporters/test_export.py": """\
import copy

import torch
from parameterized import parameterized
from transformers import set_seed
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.exporters.utils import get_leaf_tensors


class ExportTesterMixin:
    @parameterized.expand([("static", False), ("dynamic", True)])
    def test_torch_export(self, _, dynamic):
        if not self.test_torch_exportable:
            self.skipTest("test_torch_exportable is False")
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
                inputs = self._prepare_for_class(inputs, model_class)
                model = model_class(config).eval()
                with torch.no_grad():
                    set_seed(0)
                    expected = get_leaf_tensors(model(**copy.deepcopy(inputs)))
                    exported = DynamoExporter().export(
                        model, copy.deepcopy(inputs), config=DynamoConfig(dynamic=dynamic)
                    )
                    set_seed(0)
                    actual = get_leaf_tensors(exported.program.module()(**copy.deepcopy(inputs)))
                torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
""",
    # Used to fetch photographs from the Hub, which no test here does: a smooth colourful picture stands in for them.
    "utils/fetch_hub_objects_for_ci.py": """\
import tempfile

import numpy as np
from PIL import Image


def url_to_local_path(url, return_url_if_not_found=True):
    y, x = np.mgrid[0:480, 0:640] / 80
    picture = np.stack([np.sin(x) * np.cos(y), np.cos(x + y), np.sin(y)], axis=-1)
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        Image.fromarray(np.uint8(127.5 * (1 + picture))).save(file)
    return file.name
""",
}


def download(folder: Path) -> Path:
    """Return the source package of the installed Transformers, downloaded to `folder` unless it is there."""
    sdist = folder / f"transformers-{transformers.__version__}.tar.gz"
    if not sdist.exists():
        requirement = f"transformers=={transformers.__version__}"
        command = ["pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", *command, requirement], check=True)
    return sdist


def assemble(sdist: Path, out: Path) -> None:
    """Write the package `hf_conformance` to `out`."""
    for name, text in STANDINS.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            path = Path(member.name)  # transformers-VERSION/tests/test_*.py
            file = archive.extractfile(member) if path.parts[1:-1] == ("tests",) and path.name in MIXINS else None
            if file is not None:
                (out / "hf_conformance" / path.name).write_bytes(file.read())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    assemble(download(target), target)
