"""The conformance tests need `make conformance`, which brings Transformers' own test mixins; see assemble.py."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("hf_conformance") else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    flash_attention = ["flash_attn_test", "flash_attn_3_test", "flash_attn_4_test"]
    for marker in [*flash_attention, "accelerate_tests", "is_training_test", "torch_compile_test"]:
        config.addinivalue_line("markers", f"{marker}: set by the mixins")
