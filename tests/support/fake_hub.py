"""A hub on this machine, over real HTTP, for huggingface_hub's own client: repositories, uploads by LFS, downloads.

It keeps everything in memory, and knows what a client of model repositories needs: who has a token, validation of
cards, creating a repository, which files go by LFS, LFS uploads, commits, listings and downloads. It does not speak Xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub.utils import close_session

#: What a token may do; another one is unknown.
TOKENS = {"hf_writer": "write", "hf_reader": "read"}
NAMESPACE = "org"


@dataclass
class Repository:
    """A model repository: its files at each commit, the newest last."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors lfs\n"}])
    large: set[str] = field(default_factory=set)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def head(self) -> str:
        return f"{len(self.commits):040x}"

    def at(self, revision: str) -> dict[str, bytes] | None:
        if revision in ("main", self.head()):
            return self.files
        known = {f"{number:040x}": files for number, files in enumerate(self.commits, 1)}
        return known.get(revision)


@dataclass
class FakeHub:
    """What the server holds, and what it was asked.

    Attributes:
        url: What it listens on.
        repositories: By name, ``org/name``.
        blobs: Large files that were uploaded, by SHA-256, in a commit or not yet.
        requests: Method and path of each request, in order.
        failing: Paths that answer 400 begin so; for uploads that break off.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)

    def uploads(self) -> list[str]:
        """Large files that were sent, by SHA-256, in order."""
        return [request.rpartition("/")[2] for request in self.requests if request.startswith("PUT /lfs/")]


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that listens while the block runs."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def connected(hub: FakeHub, cache: str, token: str | None = "hf_writer") -> Iterator[None]:
    """In this process huggingface_hub talks to this hub, as HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN would have it."""
    settings = {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": cache}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(huggingface_hub.constants, name, value)
        patch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", f"{cache}/no-token")
        patch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
        close_session()
        try:
            yield
        finally:
            close_session()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request after another of one connection."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def do_PUT(self) -> None:
        self._respond()

    def _respond(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path_only}")
        if any(self.path_only.startswith(start) for start in self.hub.failing):
            return self._send(400, {"error": "this request was chosen to fail"})
        parts = self.path_only.strip("/").split("/")
        if parts[0] == "lfs":
            return self._large_file(parts[1])
        if parts[0] != "api":
            return self._of_repository("/".join(parts[:2]).removesuffix(".git"), parts[2:])
        if parts[1] == "models":
            return self._of_model("/".join(parts[2:4]), parts[4:])
        answers = {"whoami-v2": self._who, "validate-yaml": self._validate, "repos": self._create}
        return answers.get(parts[1], self._unknown)()

    def _send(self, status: int, value: Any = None, headers: dict[str, str] | None = None, raw: bytes = b"") -> None:
        content = raw if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _role(self) -> str | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _may_write(self) -> bool:
        role = self._role()
        if role == "write":
            return True
        if role is None:
            self._send(401, {"error": "Invalid username or password."})
        else:
            self._send(403, {"error": "You don't have the rights to write here"})
        return False

    def _unknown(self) -> None:
        self._send(404, {"error": "this hub does not have that"})

    def _who(self) -> None:
        if self._role() is None:
            return self._send(401, {"error": "Invalid username or password."})
        return self._send(200, {"type": "user", "name": "someone", "orgs": [{"name": NAMESPACE}]})

    def _validate(self) -> None:
        """As the hub: a card begins with YAML, and ``license`` is text."""
        try:
            front = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
            problems = [] if isinstance(front.get("license", ""), str) else ['"license" must be a string']
        except (IndexError, AttributeError, yaml.YAMLError):
            problems = ["the metadata is not YAML"]
        self._send(400 if problems else 200, {"errors": [{"message": text} for text in problems], "warnings": []})

    def _create(self) -> None:
        if not self._may_write():
            return None
        request = json.loads(self.body)
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] != NAMESPACE:
            return self._send(403, {"error": f"You don't have the rights to create a model under {name}"})
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo"})
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.hub.repositories[name] = Repository(private)
        return self._send(200, {"url": f"{self.hub.url}/{name}"})

    def _repository(self, name: str) -> Repository | None:
        """A repository that this client may see; answers where there is none."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self._role() is None):
            self._refuse(401 if self._role() is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _of_model(self, name: str, rest: list[str]) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        what, revision = (rest[0] if rest else "revision"), (rest[1] if len(rest) > 1 else "main")
        files = repository.at(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "revision":
            return self._send(200, self._info(name, repository, files))
        if what == "tree":
            return self._send(200, [_entry(path, data, path in repository.large) for path, data in files.items()])
        if not self._may_write():
            return None
        return self._preupload(files) if what == "preupload" else self._commit(name, repository)

    def _info(self, name: str, repository: Repository, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "modelId": name, "sha": repository.head(), "private": repository.private,
                "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip

    def _preupload(self, files: dict[str, bytes]) -> None:
        listed = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False, "oid": _oid(file["path"], files[file["path"]]) if file["path"] in files else None}
            for file in json.loads(self.body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": listed})

    def _commit(self, name: str, repository: Repository) -> None:
        files = dict(repository.files)
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return self._send(400, {"error": f"{value['path']}: was not uploaded"})
                files[value["path"]] = self.hub.blobs[value["oid"]]
                repository.large.add(value["path"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append(files)
        oid = repository.head()
        return self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _of_repository(self, name: str, rest: list[str]) -> None:
        repository = self._repository(name)
        if repository is None:
            return None
        if rest[0] == "info":
            return self._batch() if self._may_write() else None
        revision, path = rest[1], "/".join(rest[2:])
        files = repository.at(revision) or {}
        if path not in files:
            return self._refuse(404, "EntryNotFound", f"{path} does not exist")
        etag = f'"{_oid(path, files[path])}"'
        headers = {"ETag": etag, "X-Repo-Commit": repository.head(), "Content-Type": "application/octet-stream"}
        return self._send(200, None, headers, files[path])

    def _batch(self) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted if wanted["oid"] in self.hub.blobs else {**wanted, "actions": upload})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._send(400, {"error": "the content does not have this SHA-256"})
        self.hub.blobs[oid] = self.body
        return self._send(200, {})


def _entry(path: str, data: bytes, large: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
    if large:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _oid(path: str, data: bytes) -> str:
    """What the hub tells apart contents by: SHA-256 for large files, else git's."""
    return hashlib.sha256(data).hexdigest() if path.endswith(".safetensors") else _git_oid(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
