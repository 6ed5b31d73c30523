"""The house itself: rooms and doors; importing does nothing, the wheel holds only the package.

Which room may import which is import-linter's (pyproject.toml); `make check` runs it.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_trees import TREES
from plugin_folders import PACKAGE, makes_a_folder

import dit_shd

ROOMS = {
    "analysis",
    "attention",
    "cli",
    "core",
    "data",
    "diffusion",
    "distillation",
    "evaluation",
    "integrations",
    "models",
    "profiling",
    "reports",
    "squeezing",
    "study",
    "tasks",
    "training",
}
LAZY = (Path("__init__.py"), Path("__main__.py"))
"""No rooms: the public names, loaded when asked for, and the program, which hears Ctrl-C while it is imported."""
SEVERAL = {
    "core/test_hub.py": "names on the hub",
    "clients/test_clients.py": "capture on models of others, outside diffusers",
    "data/sources/test_caption_labels.py": "labels of sets whose captions are wanted",
    "data/test_captioned_images.py": "images with captions as a reference",
    "data/test_sampled_images.py": "samplings as sets to be compared",
    "attention/recording/test_families.py": "models of timm and transformers",
    "attention/recording/test_heads_in_rows.py": "heads among the rows, read or refused",
    "attention/recording/test_several_calls.py": "parts of a batch, windows and heads in several calls",
    "attention/recording/test_skipped_layers.py": "layers that are skipped, by hand, or there at times alone",
    "attention/recording/test_unusual_models.py": "what models do to their memory, layers and modules while they run",
    "attention/recording/test_wrong_hands.py": "what people give to capture and SHD that is not what they take",
    "attention/recording/test_windows.py": "windows beside the heads",
    "attention/recording/test_zoo.py": "the models that the next one tries",
    "attention/recording/test_zoo_capture.py": "every transformer class of diffusers",
    "distillation/test_combinations.py": "losses of all kinds together",
    "distillation/test_first_look.py": "the first look at a teacher, and what it cannot see",
    "distillation/initialisation/test_initialised_runs.py": "runs that begin with their teacher's weights",
    "distillation/losses/test_shares_of_shd.py": "what SHD counts, and how much",
    "integrations/test_other_trainers.py": "trainers with teachers and texts of their own",
    "integrations/test_packed_trainers.py": "packed and padded texts in a Trainer",
    "integrations/test_trainer_refusals.py": "what add_shd refuses of a trainer and its models",
    "models/test_public_code.py": "ours beside the public code",
    "reports/test_browser.py": "every page in headless Chromium",
    "squeezing/test_synchronisations.py": "what Python reads of a layer, and NaN where it reads nothing",
    "squeezing/test_causal_memory.py": "squeeze and divergence, both backends",
    "squeezing/test_masked_rows.py": "divergence, weights and gradients where every key is masked",
    "squeezing/test_row_weights.py": "squeeze, divergence and both backends",
    "study/test_programs.py": "programs of others that read a study's samples",
    "study/test_shared_work.py": "what cells share, from its making to the notes of a page",
    "tasks/test_classification_batches.py": "what a batch of images is, however divided",
    "tasks/test_held_out_text.py": "text that is never learned, and its perplexity",
    "tasks/test_language_models.py": "which models fit a text",
    "tasks/test_laws.py": "laws of every task's runs",
    "tasks/test_tasks.py": "what any task promises, with one of a test's own",
    "tasks/test_text_to_image_runs.py": "whole runs of every kind of pipeline",
    "training/test_equivalence.py": "a run however it is divided",
    "training/test_kill.py": "a run killed anywhere",
    "training/test_real_size.py": "true sizes",
    "training/test_run_restarts.py": "a run begun again in its folder",
    "training/test_scale.py": "several processes, slices, compilation",
}
"""Files of tests that are of several files of a room, and what they are about."""
ANY_TASKS_LOSSES = ("__init__", "output", "shd")
"""Losses of any task; others may be of one task, whose batches they read."""


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, list[str]]]:
    """Imports from dit_shd in a tree, each with the dotted parts that it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "dit_shd"]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "dit_shd"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if names:
            yield node, names


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def test_the_top_level_holds_rooms_and_nothing_else():
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    beside = {"__init__.py", "__main__.py", "py.typed", "assets"}
    assert beside <= names
    assert not names - beside - ROOMS
    assert all((PACKAGE / name / "__init__.py").is_file() for name in names - beside)


def test_an_underscore_is_private_to_its_file():
    """No underscored name or module is imported from another file, nor reached as an attribute of a module."""
    found = []
    for file, tree in TREES.items():
        modules = set()
        for node, names in imports(tree):
            found += [f"{file}:{node.lineno}: {name}" for name in names if any(map(private, name.split(".")))]
            modules |= {
                alias.asname or alias.name for alias in node.names if (PACKAGE.parent / _path(node, alias)).exists()
            }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node.value) in modules:
                found.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert not found


def _path(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Path:
    name = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
    path = Path(*name.split("."))
    return path if (PACKAGE.parent / path).is_dir() else path.with_suffix(".py")


def test_an_init_is_a_face():
    """It names the public API of its package; only that of a plug-in folder defines something: the base class."""
    found = []
    for file, tree in TREES.items():
        if file.name != "__init__.py" or file.parent == Path() or makes_a_folder(tree):
            continue
        for position, node in enumerate(tree.body):
            docstring = position == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            names_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            if not (docstring or names_all or isinstance(node, (ast.Import, ast.ImportFrom))):
                found.append(f"{file}:{node.lineno}")
    assert not found


def test_contributing_draws_every_room(root):
    """The picture is the layers of import-linter."""
    picture = (root / "CONTRIBUTING.md").read_text().split("```")[3]
    lines = [line.split("  ")[0].strip() for line in picture.strip().splitlines()]
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers"]
    assert lines == contract["layers"]
    assert {room for line in lines for room in line.split(" | ")} == ROOMS


def test_no_package_hides_a_public_name():
    """A package dit_shd/capture/ would take the place of the function dit_shd.capture once it is imported."""
    names = {path.stem for path in PACKAGE.iterdir()}
    assert not names & set(dit_shd.__all__)


def test_packages_import_each_other_at_the_top_of_files():
    """None in a function, none under TYPE_CHECKING: what a file needs stands at its top, and import-linter sees it.

    Also after an `if` there: a package that is not everywhere.
    """
    found = []
    for file, tree in TREES.items():
        if file in LAZY:
            continue
        top = [*tree.body, *(inner for node in tree.body if isinstance(node, ast.If) for inner in node.body)]
        top = [node for node in top if not _under_type_checking(node, tree)]
        found += [f"{file}:{node.lineno}: {', '.join(names)}" for node, names in imports(tree) if node not in top]
        found += [f"{file}:{node.lineno}: import_module('dit_shd...')" for node in ast.walk(tree) if _by_name(node)]
    assert not found


def _under_type_checking(node: ast.AST, tree: ast.Module) -> bool:
    tests = [outer.test for outer in tree.body if isinstance(outer, ast.If) and node in outer.body]
    return any("TYPE_CHECKING" in ast.unparse(test) for test in tests)


def _by_name(node: ast.AST) -> bool:
    """import_module or __import__ of a name of ours that is written out."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")):
        return False
    return bool(node.args) and "dit_shd" in ast.unparse(node.args[0])


def test_imports_are_absolute():
    assert not [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def test_tests_mirror_the_tree(root):
    """tests/ROOM/test_x.py is of dit_shd/ROOM/x.py or of the package dit_shd/ROOM/x/, or says above what it is of."""
    strange = set()
    for file in (root / "tests").glob("*/**/test_*.py"):
        own = file.relative_to(root / "tests")
        module = PACKAGE / own.parent / own.stem.removeprefix("test_")
        if not (module.is_dir() or module.with_suffix(".py").is_file()):
            strange.add(own.as_posix())
    assert strange == set(SEVERAL)


def test_public_names_are_typed_and_completed():
    """What __getattr__ finds, a type checker reads under TYPE_CHECKING from the same place, and dir() names it."""
    block, _ = [node for node in TREES[Path("__init__.py")].body if isinstance(node, ast.If)]  # and not TYPE_CHECKING
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == dit_shd._HOME
    assert set(dit_shd.__all__) == set(typed)
    assert {*dit_shd.__all__, "__version__"} <= set(dir(dit_shd))
    assert all(getattr(dit_shd, name).__module__ == module for name, module in typed.items())


def test_importing_does_nothing():
    """`import dit_shd` loads neither torch nor anything else heavy; the public names appear when asked for.

    The plug-in's names and the pages of runs load torch, and no library of models.
    """
    code = (
        "import sys, dit_shd; heavy = {'torch', 'diffusers', 'numpy', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(dit_shd.__all__) <= set(dir(dit_shd)); assert 'torch' not in sys.modules\n"
        "from dit_shd import SHD, Capture, attention_kl, capture, squeeze\n"
        "import dit_shd.cli.commands.plot\n"
        "heavy = {'accelerate', 'diffusers', 'peft', 'scipy', 'timm', 'transformers'} & set(sys.modules)\n"
        "assert 'torch._dynamo' not in sys.modules  # takes as long as all the rest\n"
        "assert not heavy, heavy\n"
        "assert all(getattr(dit_shd, n) for n in dit_shd.__all__)\n"
        "assert not {'mlxtend', 'torch_fidelity'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dit_shd.nothing


def code_lines(text: str) -> int:
    """Lines with code: neither blank, nor a comment, nor of a string that stands by itself (docstrings)."""
    strings = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    documented = {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}
    marks = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in marks]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - documented)


@pytest.mark.parametrize(("file", "most"), [("training/trainer.py", 170), ("distillation/distiller.py", 150)])
def test_the_loop_and_the_distiller_are_short(file, most):
    assert code_lines('"""a\n\nb"""\n\nx = (  # y\n    1\n)\n') == 3
    assert code_lines((PACKAGE / file).read_text()) < most


def test_the_loop_knows_no_task():
    """What trains, distils, guards and profiles names no timestep, no label and no masked pass: those are a task's."""
    rooms = ("training", "distillation", "profiling")
    files = {f for f in TREES if f.parts[0] in rooms and "initialisation" not in f.parts and f.name != "config.py"}
    files -= {f for f in files if f.parts[:2] == ("distillation", "losses") and f.stem not in ANY_TASKS_LOSSES}
    assert len(files) > 30
    words = re.compile(r"timestep|\blabels?\b|class_labels|label_dropout|\bmask(ed|s|ing)?\b|mask_ratio", re.IGNORECASE)
    assert words.search("class_labels=x")
    assert not [file for file in files if words.search((PACKAGE / file).read_text())]


def test_files_are_about_300_lines_and_functions_about_65():
    long = []
    for file, tree in TREES.items():
        lines = (PACKAGE / file).read_text().count("\n")
        if lines > 320:
            long.append(f"{file}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 65:
                long.append(f"{file}: {node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_files_of_tests_are_about_300_lines(root):
    lines = {file: file.read_text().count("\n") for file in (root / "tests").rglob("*.py")}
    assert len(lines) > 400
    assert not {file.relative_to(root).as_posix(): count for file, count in lines.items() if count > 320}


def test_no_pickle_is_ever_executed(root):
    """No torch.load without weights_only=True, no np.load without allow_pickle=False, no pickle.load."""
    for file, tree in {**TREES, Path("train_dit.py"): ast.parse((root / "train_dit.py").read_text())}.items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            call = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if call == "torch.load":
                assert keywords.get("weights_only") == "True", f"{file}:{node.lineno}"
            if call == "np.load":
                assert keywords.get("allow_pickle") == "False", f"{file}:{node.lineno}"
            assert call not in ("pickle.load", "pickle.loads", "yaml.unsafe_load"), f"{file}:{node.lineno}"
