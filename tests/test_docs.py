"""The examples run, and the pages made from code say what the code says."""

import importlib.util
import subprocess
import sys

import diffusers
import pytest
import zoo


@pytest.fixture(scope="module")
def build(root):
    spec = importlib.util.spec_from_file_location("docs_build", root / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["distil_sd3", "distil_deit"])
def test_an_example_runs_and_its_attention_comes_nearer(name, root):
    done = subprocess.run(
        [sys.executable, str(root / "examples" / f"{name}.py"), "--steps", "12"],
        capture_output=True, text=True, cwd=root, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attention = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()]
    assert attention[-1] < attention[0]


def test_the_trainer_page_is_the_examples(build, root):
    assert build.trainer_page() == (root / "docs" / "use-it-in-your-trainer.md").read_text(), "run: make docs"


def test_the_page_of_evidence_is_what_the_rows_say(build, root):
    assert build.evidence_page() == (root / "docs" / "evidence.md").read_text(), "run: make docs"


@pytest.mark.skipif(diffusers.__version__ != zoo.VERSION, reason="the table names the diffusers it was made with")
@pytest.mark.filterwarnings("ignore")
def test_the_table_of_models_is_what_capture_says(build, root):
    assert build.supported_page() == (root / "docs" / "supported-models.md").read_text(), "run: make docs"


def test_the_table_of_hostile_input_has_every_class(root):
    from hostile import all_classes

    page = (root / "docs" / "reliability.md").read_text()
    missing = [cls.name for cls in all_classes() if f"| {cls.name} | {cls.what} | {cls.count} |" not in page]
    assert not missing, "run: make docs"
