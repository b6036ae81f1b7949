"""What a name stands for. huggingface_hub itself fetches, over HTTP, from a hub that a thread of the test plays."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.test_checkpoint import A, B, save, sharded

COMMIT, OLDER = "c" * 40, "0" * 40
NAME = "some-org/some.model"
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
LOCATE = """
import json, sys
from yarn_gguf.errors import YarnGgufError
from yarn_gguf.checkpoint.hub import locate
try:
    found = locate(sys.argv[1], **json.loads(sys.argv[2]))
    answer = [0, str(found.folder), found.repository, found.revision]
except YarnGgufError as error:
    answer = [error.exit_code, error.code, str(error)]
json.dump(answer, open(sys.argv[3], "w"))
"""


@dataclass
class Hub:
    """One repository. `files` are its last commit's; `asked` are the files that were fetched."""

    files: dict[str, bytes]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    gone: bool = False  # answers every file with an error

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body: the four questions that the client asks."""
        api, files = f"/api/models/{NAME}", f"/{NAME}/resolve/"
        path = path.partition("?")[0]
        if path.startswith(files):
            return self.file(*path.removeprefix(files).split("/", 1))
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            return _json(
                {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            )
        if path == f"{api}/tree/{COMMIT}":
            return _json([_entry(name, content) for name, content in self.files.items()])
        if path.startswith(f"{api}/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if path.startswith("/api/models/gated/"):
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def file(self, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        if self.gone:
            return 500, {}, b""
        if name not in self.files or revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.asked.append(name)
        content = self.files[name]
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(_repository(tmp_path / "made"))
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(found)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()
        thread.join()


def _repository(folder: Path) -> dict[str, bytes]:
    sharded(folder, {"model-00001-of-00002.safetensors": A, "model-00002-of-00002.safetensors": B})
    save(folder / "consolidated.safetensors", A)
    texts = {"config.json": "{}", "merges.txt": "a b", "tokenizer.model": "t", "chat_template.jinja": "{{ x }}"}
    texts |= {"modeling_evil.py": "raise SystemExit", "pytorch_model.bin": "pickle", "README.md": "# card"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "original/params.json": b"{}", "onnx/model.safetensors": b"x"}


WANTED = {"config.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "README.md"} | {
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}


def located(tmp_path: Path, source: str, endpoint: str = NOWHERE, **options: Any) -> list[Any]:
    """What `locate` gives or raises, in a process whose cache is under `tmp_path`; nothing may come on stdout."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-c", LOCATE, source, json.dumps(options), str(answer)]
    environment = {**keep, **settings, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    found: list[Any] = json.loads(answer.read_text())
    return found


def cached(tmp_path: Path, files: Mapping[str, bytes], commit: str = COMMIT, branch: str | None = "main") -> Path:
    """The hub cache's own layout, by hand: blobs, a folder of links for the commit, and what the branch stands for."""
    root = tmp_path / "hf" / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha1(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    if branch:
        (root / "refs" / branch).write_text(commit)
    return snapshot


def small(tmp_path: Path) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": save(tmp_path / "small").read_bytes()}


def test_a_folder_comes_first_and_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    cached(tmp_path, small(tmp_path))
    assert located(tmp_path, NAME) == [0, NAME, None, None]
    assert located(tmp_path, NAME, revision="main")[:2] == [2, "UsageError"]


def test_a_name_is_found_in_the_cache_without_network_and_pinned_to_its_commit(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, small(tmp_path))
    older = cached(
        tmp_path, {"config.json": b"{ }", "model.safetensors": save(tmp_path / "b", B).read_bytes()}, OLDER, None
    )
    for download in (False, True):
        assert located(tmp_path, NAME, download=download) == [0, str(snapshot), NAME, COMMIT]
    assert located(tmp_path, NAME, revision=OLDER) == [0, str(older), NAME, OLDER]
    assert located(tmp_path, NAME, revision="v1")[:2] == [3, "not_cached"]
    assert located(tmp_path, NAME, revision="../../x")[:2] == [2, "UsageError"]
    assert located(tmp_path, str(snapshot)) == [0, str(snapshot), NAME, COMMIT]


def test_what_is_not_whole_in_the_cache_says_how_to_fetch_it(tmp_path: Path) -> None:
    missing = located(tmp_path, NAME)
    assert missing[:2] == [3, "not_cached"] and "--download" in missing[2] and NAME in missing[2]
    snapshot = cached(tmp_path, {"config.json": b"{}"})  # what looking at a config leaves behind
    partial = located(tmp_path, NAME)
    assert partial[:2] == [3, "not_cached"] and "only in parts" in partial[2] and "--download" in partial[2]
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert "model.safetensors is missing" in located(tmp_path, NAME)[2]


@pytest.mark.parametrize(
    "source", ["nowhere", "a/b/c", "/nowhere/at all", "../x/y", "x" * 5000, "a b/c", "--/..", "a--b/c", "a/b.git"]
)
def test_what_is_neither_a_folder_nor_a_name_is_refused(tmp_path: Path, source: str) -> None:
    assert located(tmp_path, source, download=True)[:2] == [3, "not_found"]


def test_a_download_fetches_the_checkpoint_and_nothing_else(tmp_path: Path, hub: Hub) -> None:
    code, folder, repository, revision = located(tmp_path, NAME, hub.url, download=True)
    assert (code, repository, revision) == (0, NAME, COMMIT)
    assert {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")} == WANTED
    assert set(hub.asked) == WANTED
    for name in WANTED:
        assert Path(folder, name).read_bytes() == hub.files[name]
    assert located(tmp_path, NAME) == [0, folder, NAME, COMMIT]  # and from then on without network


def test_pickles_are_fetched_when_they_are_allowed_and_there_is_nothing_else(tmp_path: Path, hub: Hub) -> None:
    hub.files = {name: content for name, content in hub.files.items() if "safetensors" not in name}
    folder = Path(located(tmp_path, NAME, hub.url, download=True)[1])
    assert not (folder / "pytorch_model.bin").exists()
    assert located(tmp_path, NAME, hub.url, download=True, allow_pickle=True)[:2] == [0, str(folder)]
    assert (folder / "pytorch_model.bin").exists()


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_bad_input_and_what_cannot_be_reached_is_not(tmp_path: Path, hub: Hub) -> None:
    assert located(tmp_path, "some-org/other", hub.url, download=True)[:2] == [3, "not_found"]
    assert located(tmp_path, NAME, hub.url, download=True, revision="v9")[:2] == [3, "not_found"]
    assert located(tmp_path, "gated/model", hub.url, download=True)[:2] == [3, "gated"]
    unreachable = located(tmp_path, NAME, NOWHERE, download=True)
    assert unreachable[:2] == [4, "download_failed"] and "\n" not in unreachable[2]
    hub.gone = True
    assert located(tmp_path, NAME, hub.url, download=True)[:2] == [4, "download_failed"]
