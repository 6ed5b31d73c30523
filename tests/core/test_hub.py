"""Names on the hub, with a hub on this machine: what is fetched, and what is said where it has nothing."""

import socket

import pytest
from huggingface_hub import constants
from local_hub import local_hub
from prompt_students import prompt_student
from small_families import build, same
from tiny_pipelines import write_pipeline

from dit_shd.cli.program import main
from dit_shd.core import places
from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import read_autoencoder
from dit_shd.data.sources.detect import open_source
from dit_shd.diffusion.assembly import assemble
from dit_shd.models import loading, provenance


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with a repository somebody/dit; its files are to be filled in."""
    with local_hub(monkeypatch, str(tmp_path / "cache")) as hub:
        hub.repositories["somebody/dit"] = {}
        yield hub


def contents(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_model_is_fetched_from_the_hub_and_only_what_is_needed_of_it(hub, tmp_path, monkeypatch):
    build("dit").save_pretrained(tmp_path / "m" / "transformer")
    build("dit", 1).save_pretrained(tmp_path / "m" / "transformer", variant="fp16")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "m" / "samples.npz").write_bytes(b"much else")
    hub.repositories["somebody/dit"] = contents(tmp_path / "m")
    assert same(loading.load("hub:somebody/dit").to_public(), build("dit").to_public())
    fetched = {path.split("/", 5)[-1] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "README.md"}
    assert provenance.provenance("hub:somebody/dit").license == "mit"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what is in the cache needs no network
    assert same(loading.load("hub:somebody/dit").to_public(), build("dit").to_public())


def test_the_pipeline_of_a_students_text_is_known_from_the_hub_too(hub, tmp_path):
    """Its tokens and size, and that the text encoders are those that it has learned."""
    run = prompt_student(write_pipeline("sd3", tmp_path / "pipeline"), tmp_path / "run")
    hub.repositories["somebody/dit"] = contents(run / "student")
    whole, record = assemble("hub:somebody/dit", None)
    assert (record.text_tokens, record.size) == (8, (16, 16))
    assert same(whole.transformer.state_dict(), loading.load(run / "student").state_dict())
    other = write_pipeline("sd3", tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="has other text encoders"):
        assemble("hub:somebody/dit", str(other))


def test_what_the_hub_has_not_is_said(hub):
    hub.repositories["somebody/dit"] = {"model.gguf": b""}
    with pytest.raises(UserError, match=r"hub:somebody/dit: wanted a repository with config\.json or transformer/"):
        loading.load("hub:somebody/dit")
    with pytest.raises(UserError, match="hub:somebody/dit@v9: on the hub it has no revision 'v9'"):
        loading.load("hub:somebody/dit@v9")
    with pytest.raises(UserError, match="vae: hub:nobody/x: there is no such model on the hub, or it needs a login"):
        read_autoencoder("hub:nobody/x")


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch, capsys):
    """As behind a firewall: the connection is taken, and nothing ever comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(places, "ANSWER_SECONDS", 60.0)
        monkeypatch.setattr(places, "IN_ALL_SECONDS", 0.3)
        assert main(["sample", "hub:somebody/silent"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "hub:somebody/silent: the Hugging Face hub cannot be reached, and it is not in the local cache"
    )


def test_offline_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        loading.load("hub:somebody/nothing")
    with pytest.raises(UserError, match="vae: hub:somebody/nothing: HF_HUB_OFFLINE forbids"):
        read_autoencoder("hub:somebody/nothing")
    with pytest.raises(UserError, match="images: hub:nothing: HF_HUB_OFFLINE forbids"):
        open_source("hub:nothing")
