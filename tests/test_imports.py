"""Arrows run one way: the table of rings in docs/architecture.md, read off the imports of every file."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "crate_mae_hf"
# Place -> its ring. A place is a flat file or a folder of the package, or a folder beside it; "x_*" stands for all
# files that begin so. A file may import from lower rings, and from its own place.
RINGS = {
    "crate_ops": 0,
    "configuration_*": 0,
    "crate_patches": 1,
    "crate_layers": 1,
    "crate_heads": 2,
    "modeling_*": 2,
    "image_processing_*": 2,
    "__init__": 3,  # also what a package's file means by `from .. import __version__`: public names
    "registry": 3,
    "adapters": 3,
    "cli": 3,
    "tables": 3,
    "loading": 3,
    "objectives": 4,
    "graphs": 4,
    "analysis": 4,
    "data": 4,
    "conversion": 4,
    "export": 5,
    "evaluation": 5,
    "hub": 5,
    "pretrained": 5,
    "training": 6,
    # Commands (`python -m crate_mae_hf.hub`) put things together, as the examples do; nobody imports either.
    "__main__": 7,
    "examples": 7,
    "benchmarks": 7,
    "app": 7,
}
# Arrows within a ring, or past the rule for a place.
ALSO_ALLOWED = {
    ("configuration_*", "configuration_crate"),
    ("modeling_*", "crate_heads"),
    ("modeling_crate_split_brain", "modeling_*"),  # its towers
    ("graphs", "objectives"),  # a contrastive loss
    ("__init__", "registry"),
    ("__init__", "pretrained"),  # which needs nothing, for `crate_mae_hf.pretrained.path`
    ("benchmarks", "benchmarks"),
}
# A wing that only commands import, whatever the rings say.
APART = "graphs"
# Files that travel to the Hub import each other and these.
TRAVELLING = ("crate_", "configuration_", "modeling_", "image_processing_")
DEPENDENCIES = {"torch", "transformers", "huggingface_hub", "numpy", "PIL", "typing_extensions"}


def matches(pattern: str, place: str) -> bool:
    return place.startswith(pattern[:-1]) if pattern.endswith("*") else place == pattern


def find_place(parts: tuple[str, ...]) -> str:
    """The place of a module, given as the parts of its name without the package's."""
    if not parts:
        return "__init__"
    return "__main__" if parts[-1] == "__main__" else parts[0]


def find_ring(place: str) -> int:
    rings = [ring for pattern, ring in RINGS.items() if matches(pattern, place)]
    assert rings, f"{place} has no ring: add it to the table here and in docs/architecture.md"
    return rings[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_modules(module: tuple[str, ...], is_package: bool, tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Modules of ours that a module imports, by the parts of their names without the package's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = node.level - is_package if node.level else 0
            base = (PACKAGE, *module[: len(module) - parents]) if node.level else ()
            target = ".".join([*base, *filter(None, [node.module])])
            names = [f"{target}.{alias.name}" for alias in node.names] if target in (PACKAGE,) else [target]
        else:
            continue
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == PACKAGE:
                yield parts[1:]
            elif parts[0] in ("examples", "benchmarks", "app"):
                yield parts


def climbing_imports(sources: Mapping[str, str]) -> list[str]:
    """Every import that climbs: "a.py imports b", for files by their path from the root."""
    found = []
    modules = {Path(path).parts[2:] for path in sources if path.startswith("src/")}
    names = {parts[0].removesuffix(".py") for parts in modules if parts}
    for path, source in sources.items():
        parts = Path(path).with_suffix("").parts
        inside = parts[:2] == ("src", PACKAGE)
        module = parts[2:] if inside else parts
        is_package = module[-1] == "__init__"
        if is_package:
            module = module[:-1]
        place = find_place(module)
        tree = ast.parse(source)
        if matches("image_processing_*", place):  # so that the models' code travels along
            tree.body = [node for node in tree.body if not is_type_checking(node)]
        for target in imported_modules(module if inside else (), is_package, tree):
            # `from crate_mae_hf import X` is a public name unless X is a file or folder.
            other = find_place(target) if not target or target[0] in names or target[0] in RINGS else "__init__"
            if other == place and not matches("modeling_*", place):
                continue
            if any(matches(a, place) and matches(b, other) for a, b in ALSO_ALLOWED):
                continue
            if find_ring(other) >= find_ring(place) or (other == APART and find_ring(place) < 7):
                found.append(f"{path} imports {other}")
    return found


def read_sources() -> dict[str, str]:
    folders = ("src", "examples", "benchmarks", "app")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_no_import_climbs():
    sources = read_sources()
    assert len(sources) > 50
    assert climbing_imports(sources) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("src/crate_mae_hf/crate_ops.py", "from .crate_layers import CrateISTA"),
        ("src/crate_mae_hf/crate_patches.py", "from .crate_layers import CrateLayer"),
        ("src/crate_mae_hf/modeling_crate.py", "from .modeling_crate_mae import CrateMaeModel"),
        ("src/crate_mae_hf/modeling_crate.py", "from .adapters import inference"),
        ("src/crate_mae_hf/image_processing_crate_mae.py", "from .modeling_crate import CrateModel"),
        ("src/crate_mae_hf/adapters.py", "from .data.images import decode"),
        ("src/crate_mae_hf/analysis/pca.py", "from ..data import images"),
        ("src/crate_mae_hf/data/images.py", "def f():\n    from ..analysis.pca import pca_maps"),
        ("src/crate_mae_hf/evaluation/probes.py", "import crate_mae_hf.training.trainer"),
        ("src/crate_mae_hf/hub/push.py", "from ..evaluation.probes import linear_probe"),
        ("src/crate_mae_hf/evaluation/probes.py", "from ..graphs import GigaMae"),
        ("src/crate_mae_hf/training/run.py", "from examples import demo"),
        ("src/crate_mae_hf/training/run.py", "from crate_mae_hf.hub.__main__ import main"),
    ],
)
def test_an_import_that_climbs_is_found(path, line):
    sources = read_sources()
    changed = {**sources, path: f"{sources.get(path, '')}\n{line}\n"}
    assert [found.split(" imports ")[0] for found in climbing_imports(changed)] == [path]


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line[:4] in {f"| {ring} " for ring in range(8)}]
    package = ROOT / "src" / PACKAGE
    there = [place for place in RINGS if [*package.glob(place), *package.glob(f"{place}.py")]]
    assert len(there) > 12
    for place in there:
        rings = {int(row[1]) for row in rows if f"`{place}`" in row[2]}
        assert rings == {RINGS[place]}, f"docs/architecture.md has `{place}` in ring {rings}, not {RINGS[place]}"


def test_what_travels_stands_alone():
    flat = [path for path in (ROOT / "src" / PACKAGE).glob("*.py") if path.name.startswith(TRAVELLING)]
    assert len(flat) > 8
    for path in flat:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path.name}: only siblings travel along"
                assert f"{node.module}.py" in {other.name for other in flat}, f"{path.name} imports {node.module}"
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                for name in names:
                    top = name.split(".")[0]
                    assert top in DEPENDENCIES or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_files_are_small_enough_to_be_read():
    for path, source in read_sources().items():
        limit = 560 if Path(path).name.startswith("modeling_") else 600
        assert source.count("\n") <= limit, f"{path} has {source.count(chr(10))} lines, more than {limit}"
