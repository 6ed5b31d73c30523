"""What to install, and how, for every way in which dit_shd itself was installed."""

import json

import pytest

from dit_shd.core import installation
from dit_shd.core.errors import UserError
from dit_shd.core.installation import install_command, require
from dit_shd.data.datasets.text import Text
from dit_shd.diffusion.pipelines import folder_of, open_pipeline
from dit_shd.models.families.transformers import CausalLM


class Distribution:
    """An installed package with this direct_url.json, None for none."""

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "dit_shd[demo]"'),
        ({"url": "file:///a/dit", "dir_info": {"editable": True}}, "pip install --editable '/a/dit[demo]'"),
        ({"url": "file:///a%20b/x.whl", "archive_info": {}}, "pip install '/a b/x.whl[demo]'"),
        ({"url": "https://x/d.git", "vcs_info": {"vcs": "git"}}, "pip install 'dit_shd[demo] @ git+https://x/d.git'"),
        ({"url": "https://x/d.whl", "archive_info": {}}, "pip install 'dit_shd[demo] @ https://x/d.whl'"),
    ],
)
def test_the_command_fits_the_installation(monkeypatch, origin, command):
    monkeypatch.setattr(installation, "distribution", lambda name: Distribution(origin))
    assert install_command("demo") == command


def test_all_missing_packages_are_named_at_once():
    require(["json", "yaml"], "demo", "it")
    with pytest.raises(
        UserError, match=r"the demo needs the packages nope1 and nope2; install with: pip install .*demo"
    ):
        require(["nope1", "json", "nope2"], "demo", "the demo")


@pytest.mark.parametrize(
    ("use", "extra"),
    [
        (lambda: open_pipeline(folder_of("asset:captioned_digits")), "pipelines"),
        (lambda: Text(path="any.txt"), "language"),
        (lambda: CausalLM(config={"model_type": "llama"}), "language"),
        (lambda: CausalLM.from_options(config={"model_type": "llama"}), "language"),
    ],
    ids=["a pipeline", "text", "a model", "a model by its keys"],
)
def test_a_missing_transformers_is_one_line_with_its_command(monkeypatch, use, extra):
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs the packages? transformers.*; install with: pip install .*{extra}\]"):
        use()
