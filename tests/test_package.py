"""The wheel as a user gets it: in a venv of its own that has the dependencies and no optional package."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow
OPTIONAL = ("mlxtend", "datasets", "pyarrow", "transformers", "tokenizers", "onnx", "onnxruntime", "trl")


def closure(requirements: list[str]) -> set[str]:
    """The distributions that some requirements need, and theirs, without extras."""
    needed: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.name.lower() in needed or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:  # of another system
            continue
        needed.add(requirement.name.lower())
        waiting += [Requirement(text) for text in found.requires or ()]
    return needed


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, root], check=True)
    (file,) = folder.glob("*.whl")
    return file


def environment(wheel: Path, home: Path, extra: str = "") -> Path:
    """The bin folder of a venv that holds the wheel, and links to the dependencies that it declares."""
    venv.create(home, with_pip=True)
    packages = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as file:
        metadata = next(name for name in file.namelist() if name.endswith("/METADATA"))
        text = file.read(metadata).decode().partition("\n\n")[0]
    lines = [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    markers = [(line, Requirement(line).marker) for line in lines]
    required = [line.partition(";")[0] for line, marker in markers if not marker or marker.evaluate({"extra": extra})]
    for name in closure(required):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if not file.parts[0].startswith("..")}:
            if not (packages / top).exists() and top != "__pycache__":
                (packages / top).symlink_to(found.locate_file(top))
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    return home / "bin"


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    return environment(wheel, tmp_path_factory.mktemp("venv"))


def run(site: Path, *words: str, folder: Path) -> subprocess.CompletedProcess:
    hidden = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([site / words[0], *words[1:]], cwd=folder, env=hidden, capture_output=True, text=True)


def test_the_wheel_holds_the_package_and_the_experiments(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"dit_shd", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert {"dit_shd/py.typed", "dit_shd/assets/configs/digits_shd.yaml"} <= names
    assert {"dit_shd/reports/static/page.css", "dit_shd/reports/static/page.js"} <= names
    assert "dit_shd/assets/digits_teacher/diffusion_pytorch_model.safetensors" in names
    assert not any("experiments" in name or "tests" in name for name in names)
    assert {
        f"dit_shd/assets/captioned_digits/{part}" for part in ("model_index.json", "transformer/pipeline.json")
    } <= names
    assert wheel.stat().st_size < 20 * 2**20  # three teachers: twice 5.5 MB, and 8.1 MB with its whole pipeline


def test_no_link_of_its_page_is_relative(wheel, root):
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith("/METADATA"))
        page = file.read(name).decode().partition("\n\n")[2]
    relative = re.compile(r"\]\((?!https?:|#)")
    assert relative.search((root / "README.md").read_text())
    assert not relative.search(page)
    assert page.startswith("# dit_shd\n\nMake a small diffusion transformer")
    assert "what each needs and costs" in page


def test_everything_but_extras_works_without_extras(site, tmp_path):
    code = (
        "import importlib.util as u, sys, dit_shd\n"
        f"found = [n for n in {OPTIONAL!r} if u.find_spec(n)]\nassert not found, found\n"
        "assert all(getattr(dit_shd, n) for n in dit_shd.__all__)\nprint(dit_shd.__file__)\n"
    )
    done = run(site, "python", "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(site.parent) in done.stdout
    done = run(site, "dit-shd", "configs", folder=tmp_path)
    assert done.returncode == 0 and "digits_shd" in done.stdout
    done = run(site, "dit-shd", "sample", "asset:digits_teacher", "labels=3,3", "steps=2", "out=t/", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "t").glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["train", "digits_shd", "steps=1"], ["mlxtend"]),
        (["demo"], ["mlxtend"]),
        (["demo", "task=text"], ["mlxtend", "transformers"]),
        (["encode", "images=.", "pipeline=asset:captioned_digits", "out=x"], ["transformers"]),
        (["export", "asset:digits_teacher"], ["onnx", "onnxscript", "onnxruntime"]),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(site, wheel, tmp_path, words, needed):
    done = run(site, "dit-shd", *words, folder=tmp_path)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert all(package in line for package in needed), line
    assert f"pip install '{wheel}[" in line, line
    assert not list(tmp_path.iterdir())


def test_an_experiment_trains_from_the_wheel_by_its_name(wheel, tmp_path):
    pytest.importorskip("mlxtend")
    site, folder = environment(wheel, tmp_path / "venv", "demo"), tmp_path / "work"
    folder.mkdir()
    small = ["steps=2", "batch_size=4", "ema=0.5", "log_every=1"]
    done = run(site, "dit-shd", "train", "digits_shd", *small, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "4 heads into 2 (contiguous, pairwise)" in done.stderr
    done = run(site, "dit-shd", "show", "runs/digits_shd", folder=folder)
    assert done.returncode == 0 and "finished, step 2 of 2" in done.stdout, done.stderr
    assert [path.name for path in folder.iterdir()] == ["runs"]
