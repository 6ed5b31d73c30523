"""The house itself: importing does nothing, the wheel holds only the package, files stay small."""

import ast
import subprocess
import sys
import zipfile

import pytest


def test_importing_does_nothing():
    """`import dit_shd` loads neither torch nor anything else heavy; the public names appear when asked for."""
    code = (
        "import sys, dit_shd; heavy = {'torch', 'diffusers', 'numpy', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(getattr(dit_shd, n) for n in dit_shd.__all__)\n"
        "assert not {'mlxtend', 'matplotlib', 'torch_fidelity'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    import dit_shd

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dit_shd.nothing


def test_files_are_about_300_lines_and_functions_about_65(root):
    long = []
    for file in sorted((root / "dit_shd").rglob("*.py")):
        text = file.read_text()
        if text.count("\n") > 320:
            long.append(f"{file.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 65:
                long.append(f"{file.name}: {node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_no_pickle_is_ever_executed(root):
    """No torch.load without weights_only=True, no np.load without allow_pickle=False, no pickle.load."""
    for file in [*(root / "dit_shd").rglob("*.py"), root / "train_dit.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            call = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if call == "torch.load":
                assert keywords.get("weights_only") == "True", f"{file}:{node.lineno}"
            if call == "np.load":
                assert keywords.get("allow_pickle") == "False", f"{file}:{node.lineno}"
            assert call not in ("pickle.load", "pickle.loads", "yaml.unsafe_load"), f"{file}:{node.lineno}"


@pytest.mark.slow
def test_the_wheels_top_level_is_the_package(root, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", tmp_path, root], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} == {"dit_shd", "dit_shd-0.1.0.dist-info"}
    assert "dit_shd/assets/digits_teacher/diffusion_pytorch_model.safetensors" in names
    assert wheel.stat().st_size < 12 * 2**20
