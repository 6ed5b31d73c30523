"""Supply: what is declared is what is imported, with lower bounds; nothing asks the network; no tracker by itself."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from offline import EXTRAS, STAGES, control
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dit_shd.training.config import TrainConfig

TOOLS = {"import-linter", "ipykernel", "pytest-xdist", "ruff", "pyright", "pre-commit"}
"""Programs that developers run; nobody imports them."""
OF_EXAMPLES = {"trl"}
"""What an extra brings for scripts of examples/: the package adds to its trainers and imports none."""
OF_TORCH = {"triton"}
"""What torch brings along where it exists; imported only there."""
FOR_LIBRARIES = {"onnxscript", "sentencepiece", "protobuf", "beautifulsoup4", "ftfy"}
"""What torch, diffusers and transformers import where dit_shd asks them to: for ONNX's exporter, the
tokenizers of T5 of which a pipeline has spiece.model alone (PixArt), and for cleaning captions (PixArt, Wan)."""


@pytest.fixture(scope="module")
def declared(root) -> dict[str, list[Requirement]]:
    """Requirements by extra; the package's own under ''."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


def names(requirements: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(r.name) for r in requirements}


def extras(declared: dict[str, list[Requirement]]) -> set[str]:
    """What users may add."""
    return names(r for extra, group in declared.items() if extra not in ("", "dev", "docs", "clients") for r in group)


def imported(files: Iterable[Path], own: Iterable[str] = (), eager: bool = False) -> set[str]:
    """Distributions that some files import (importorskip included).

    Args:
        own: modules beside the package that are not installed ones.
        eager: only what is imported as soon as a file is.
    """
    modules = {module.split(".")[0] for file in files for module in _modules(ast.parse(file.read_text()), eager)}
    return distributions(modules - set(sys.stdlib_module_names) - {"dit_shd", *own})


def distributions(modules: Iterable[str]) -> set[str]:
    """What is installed to have some modules."""
    known = packages_distributions()
    return {canonicalize_name(name) for module in modules for name in known.get(module, [module])}


def _modules(tree: ast.AST, eager: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.If(test=ast.Name(id="TYPE_CHECKING")) if eager:
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(func=ast.Attribute(attr="importorskip"), args=[ast.Constant(value=str(module)), *_]):
                yield module
        yield from _modules(node, eager)


def test_every_dependency_has_a_lower_bound_and_nothing_else(declared):
    """One bound, whatever extra names it: with two, the lowest versions cannot be installed (`make test-lowest`)."""
    bounds: dict[str, set[str]] = {}
    for requirement in (r for group in declared.values() for r in group):
        assert [s.operator for s in requirement.specifier] == [">="], str(requirement)
        bounds.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert not {name: found for name, found in bounds.items() if len(found) > 1}


def test_the_package_imports_what_it_declares_and_declares_what_it_imports(root, declared):
    files = list((root / "dit_shd").rglob("*.py"))
    assert imported(files) - OF_TORCH == (names(declared[""]) | extras(declared)) - OF_EXAMPLES - FOR_LIBRARIES
    assert imported(files, eager=True) - OF_TORCH <= names(declared[""])


def test_tests_and_scripts_need_nothing_that_is_not_declared(root, declared):
    folders = ("tests", "examples", "benchmarks", "docs", "sampling", "eval")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    found = imported(files, own=[path.stem for file in files for path in (file, file.parent)])
    assert found - OF_TORCH <= names(r for group in declared.values() for r in group)
    assert names(declared["dev"]) - TOOLS - FOR_LIBRARIES <= found | imported((root / "dit_shd").rglob("*.py"))


@pytest.fixture(scope="module")
def asked(root, tmp_path_factory) -> dict[str, list[str]]:
    """What every stage of a user's work asked of the network; see offline.py."""
    allowed = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB_", "DISABLE_TELEMETRY"))}
    done = subprocess.run(
        [sys.executable, root / "tests" / "offline.py", tmp_path_factory.mktemp("offline")],
        env={**allowed, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("stage", [stage.__name__ for stage in STAGES if stage is not control])
def test_nothing_is_asked_of_the_network(asked, stage):
    """Not at import of any module, nor at work, nor by the libraries underneath."""
    assert asked[stage] == []


def test_that_was_without_any_extra(declared):
    assert extras(declared) <= distributions(module.split(".")[0] for module in EXTRAS)


def test_the_watch_sees_a_request_and_the_tracker_that_was_asked_for(asked):
    (request,) = asked["control"]
    assert "127.0.0.1" in request


def test_trackers_are_off_by_default(root):
    assert TrainConfig().tracker is None
    for file in (root / "configs").rglob("*.yaml"):
        assert "tracker" not in yaml.safe_load(file.read_text()), file
