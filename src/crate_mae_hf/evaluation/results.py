"""Versions of the libraries that results come from, to stand beside them."""

import platform
from importlib.metadata import PackageNotFoundError, version

from .. import __version__

LIBRARIES = ("torch", "torchvision", "transformers", "datasets", "scikit-learn", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Return the versions of Python, this package, and the libraries that features and probes come from."""
    versions = {"python": platform.python_version(), "crate_mae_hf": __version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
