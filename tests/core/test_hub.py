"""Names on the hub, with a hub on this machine: what is fetched, and what is said where it has nothing."""

import http.server
import json
import socket
import threading
from typing import ClassVar

import pytest
from huggingface_hub import constants, file_download
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

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: what a repository holds, and its files."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        place, _, _ = self.path.partition("?")
        siblings = [{"rfilename": name} for name in self.files]
        if place.startswith("/api/models/somebody/dit/tree/"):
            rows = [{"type": "file", "path": k, "size": len(v), "oid": f"{len(k)}"} for k, v in self.files.items()]
            self.answer(json.dumps(rows).encode())
        elif place in ("/api/models/somebody/dit", "/api/models/somebody/dit/revision/main"):
            self.answer(json.dumps({"id": "somebody/dit", "sha": COMMIT, "siblings": siblings}).encode())
        elif place.startswith("/somebody/dit/resolve/") and place.split("/", 5)[-1] in self.files:
            name = place.split("/", 5)[-1]
            self.answer(self.files[name], ETag=f'"{len(name)}"', **{"X-Repo-Commit": COMMIT})
        else:
            code = "RevisionNotFound" if place.startswith("/api/models/somebody/dit/") else "RepoNotFound"
            self.answer(b"", 404, **{"X-Error-Code": code})

    do_HEAD = do_GET

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine; its files are to be filled in."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    for module in (constants, file_download):  # huggingface_hub below 1 reads the second
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    yield Hub
    server.shutdown()
    server.server_close()


def contents(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_model_is_fetched_from_the_hub_and_only_what_is_needed_of_it(hub, tmp_path, monkeypatch):
    build("dit").save_pretrained(tmp_path / "m" / "transformer")
    build("dit", 1).save_pretrained(tmp_path / "m" / "transformer", variant="fp16")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "m" / "samples.npz").write_bytes(b"much else")
    hub.files = contents(tmp_path / "m")
    assert same(loading.load("hub:somebody/dit").to_public(), build("dit").to_public())
    fetched = {path.split("/", 5)[-1] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "README.md"}
    assert provenance.provenance("hub:somebody/dit").license == "mit"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what is in the cache needs no network
    assert same(loading.load("hub:somebody/dit").to_public(), build("dit").to_public())


def test_the_pipeline_of_a_students_text_is_known_from_the_hub_too(hub, tmp_path):
    """Its tokens and size, and that the text encoders are those that it has learned."""
    run = prompt_student(write_pipeline("sd3", tmp_path / "pipeline"), tmp_path / "run")
    hub.files = contents(run / "student")
    whole, record = assemble("hub:somebody/dit", None)
    assert (record.text_tokens, record.size) == (8, (16, 16))
    assert same(whole.transformer.state_dict(), loading.load(run / "student").state_dict())
    other = write_pipeline("sd3", tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="has other text encoders"):
        assemble("hub:somebody/dit", str(other))


def test_what_the_hub_has_not_is_said(hub):
    hub.files = {"model.gguf": b""}
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
