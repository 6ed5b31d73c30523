"""A hub on this machine, for the real client of huggingface_hub: repositories that are fetched from and uploaded to."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import ClassVar

import pytest
from huggingface_hub import constants, file_download

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: what a repository of models holds, its files, and one more commit."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    private: ClassVar[set[str]] = set()
    stored: ClassVar[dict[str, bytes]] = {}
    """Large files, by their SHA-256, before a commit names them."""
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        name, rest, files = self.repository()
        if files is None:
            self.refuse("RepoNotFound")
        elif self.path.startswith("/api/models/") and rest.startswith("tree/"):
            rows = [{"type": "file", "path": k, "size": len(v), "oid": f"{len(k)}"} for k, v in files.items()]
            self.answer(json.dumps(rows).encode())
        elif self.path.startswith("/api/models/") and rest in ("", "revision/main"):
            siblings = [{"rfilename": file} for file in files]
            about = {"id": name, "sha": COMMIT, "siblings": siblings, "private": name in self.private}
            self.answer(json.dumps(about).encode())
        elif rest.startswith("resolve/") and (file := rest.split("/", 2)[-1]) in files:
            self.answer(files[file], ETag=f'"{len(file)}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.refuse("RevisionNotFound" if self.path.startswith("/api/models/") else "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        self.asked.append(self.path)
        given = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") is None:
            return self.refuse("Unauthorized", 401)
        if self.path == "/api/validate-yaml":
            return self.answer(b"{}")
        if self.path == "/api/repos/create":
            about = json.loads(given)
            name = f"{about['organization']}/{about['name']}"
            address = json.dumps({"url": f"{constants.ENDPOINT}/{name}", "name": name}).encode()
            if name in self.repositories:
                return self.answer(address, 409)
            self.repositories[name] = {}
            if about.get("private") or about.get("visibility") == "private":
                self.private.add(name)
            return self.answer(address)
        name, rest, files = self.repository()
        if rest.startswith("preupload/"):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > 20_000 else "regular", "shouldIgnore": False}
                for f in json.loads(given)["files"]
            ]
            return self.answer(json.dumps({"files": modes}).encode())
        if rest == "info/lfs/objects/batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{constants.ENDPOINT}/store/{one['oid']}", "header": {}}}}
                for one in json.loads(given)["objects"]
            ]
            return self.answer(json.dumps({"transfer": "basic", "objects": objects}).encode())
        assert rest.startswith("commit/") and files is not None
        for line in given.splitlines():
            change, value = json.loads(line)["key"], json.loads(line)["value"]
            if change == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif change == "deletedFile":
                del files[value["path"]]
        commit = {"success": True, "commitOid": COMMIT, "commitUrl": f"{constants.ENDPOINT}/{name}/commit/{COMMIT}"}
        return self.answer(json.dumps(commit).encode())

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/store/{hashlib.sha256(content).hexdigest()}"
        self.stored[self.path.rpartition("/")[2]] = content
        self.answer(b"")

    def repository(self) -> tuple[str, str, dict[str, bytes] | None]:
        """The repository of the address, what it says behind it, and the files; None where there is none."""
        parts = self.path.partition("?")[0].removeprefix("/api/models").removeprefix("/").split("/", 2)
        name = "/".join(parts[:2]).removesuffix(".git")
        return name, parts[2] if len(parts) > 2 else "", self.repositories.get(name)

    def refuse(self, code: str, status: int = 404) -> None:
        self.answer(b"{}", status, **{"X-Error-Code": code})

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, cache: str) -> Generator[type[Hub]]:
    """The hub, whose repositories are to be filled in.

    Args:
        monkeypatch: Sets the client's address, and turns off the storage (Xet) that only the true hub has.
        cache: The folder of what is downloaded.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    for module in (constants, file_download):  # huggingface_hub below 1 reads the second
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    for name in ("repositories", "stored"):
        monkeypatch.setattr(Hub, name, {})
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "private", set())
    try:
        yield Hub
    finally:
        server.shutdown()
        server.server_close()
