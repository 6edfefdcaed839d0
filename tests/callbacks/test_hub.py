"""The model card, and the upload to a Hub that a local server plays."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from callbacks.hub import PushToHub
from callbacks.model_card import model_card
from tests.callbacks import run_files
from tests.callbacks.run_files import change

run = run_files.run  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


class Hub(BaseHTTPRequestHandler):
    """Plays the few endpoints of the Hub's that an upload needs; `server.state` is what it knows."""

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps({"error": body} if status >= 400 and status != 409 else body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        state = self.server.state
        name = self.path.removeprefix("/api/models/").split("/auth-check")[0]
        if self.headers["Authorization"] != "Bearer hf_test":
            self.answer(401, "no such token")
        elif self.path == "/api/whoami-v2":
            self.answer(200, {"name": "me"})
        elif name not in state["repos"]:
            self.answer(404, "no such repository")
        elif self.path.endswith("/auth-check/write") and not state["writable"]:
            self.answer(403, "no right to write")
        else:
            self.answer(200, {"id": name, "private": state["repos"][name]})

    def do_POST(self) -> None:
        state, data = self.server.state, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            request = json.loads(data)
            name = f"{request['organization']}/{request['name']}"
            if name not in state["repos"] and not state["writable"]:
                return self.answer(403, "no right to create")
            status = 409 if name in state["repos"] else 200
            state["repos"].setdefault(name, request["visibility"] == "private")
            self.answer(status, {"url": f"{state['url']}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {})
        elif "/preupload/" in self.path:
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": f["path"]} | regular for f in json.loads(data)["files"]]})
        elif state["broken"]:
            self.answer(507, "out of order")  # no client tries this again
        else:
            state["commits"].append([json.loads(line) for line in data.splitlines()])
            self.answer(200, {"commitUrl": f"{state['url']}/me/x/commit/1", "commitOid": "1" * 40})

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    url = f"http://127.0.0.1:{server.server_port}"
    server.state = {"url": url, "repos": {}, "writable": True, "broken": False, "commits": []}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.state
    server.shutdown()
    server.server_close()


def refused(uploader: PushToHub, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        uploader.prepare()
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text and len(text) < 450


def test_the_repository_is_private_and_there_before_the_training(hub: dict[str, Any]) -> None:
    PushToHub("me/memorized").prepare()
    PushToHub("me/memorized").prepare()  # again: it is there
    PushToHub("me/shown", public=True).prepare()
    assert hub["repos"] == {"me/memorized": True, "me/shown": False} and hub["commits"] == []


def test_a_public_repository_is_refused(hub: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Unless requested; one that is private stays private."""
    hub["repos"] |= {"me/open": False, "me/closed": True}
    refused(PushToHub("me/open"), "me/open is public", "--hub.public true")
    PushToHub("me/closed", public=True).prepare()
    assert "me/closed is private" in caplog.text and hub["repos"] == {"me/open": False, "me/closed": True}


def test_what_cannot_work_is_said(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one line each: no right to write, a wrong token, none, no network, offline mode."""
    hub["repos"]["they/theirs"], hub["writable"] = True, False
    for name in ("they/new", "they/theirs"):
        refused(PushToHub(name), f"may write to {name}", "hf auth login")
    uploader = PushToHub("me/memorized")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(uploader, "hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(uploader, "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(uploader, "or leave hub.repo out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(uploader, "offline")
    assert list(hub["repos"]) == ["they/theirs"]


def test_names_that_are_none_are_refused() -> None:
    for name in ("memorized", "", "a/b/c", "me/two words"):
        with pytest.raises(ValueError, match="^hub.repo"):
            PushToHub(name)


def test_the_model_is_uploaded_once_in_one_commit(
    run: Path, hub: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    """Tensors and text of the model, with the card; and again once the model has changed."""
    uploader = PushToHub("me/memorized")
    for _ in range(2):
        uploader.upload(run)
        assert f"{hub['url']}/me/memorized" in capsys.readouterr().out
    ((header, *files),) = hub["commits"]
    assert header["value"]["summary"] == "Model after 900 steps"
    sent = {file["value"]["path"]: base64.b64decode(file["value"]["content"]) for file in files}
    tensors = "unet/diffusion_pytorch_model.safetensors"
    texts = {"README.md", "model_index.json", "training.json", "unet/config.json"}
    assert sent.keys() == texts | {tensors} and sent[tensors] == b"tensors"
    assert sent["README.md"].decode() == model_card(run, "me/memorized")
    assert b"alice" not in b"".join(sent.values())
    change(run / "pipeline/training.json", steps=1000)
    uploader.upload(run)
    PushToHub("me/other").upload(run)
    assert len(hub["commits"]) == 3 and hub["repos"]["me/other"]


def test_a_failed_upload_is_made_up_for(run: Path, hub: dict[str, Any]) -> None:
    """The run is left complete, the error says what to do, and the next start uploads."""
    hub["broken"], uploader = True, PushToHub("me/memorized")
    with pytest.raises(ValueError) as caught:
        uploader.upload(run)
    text, exported = str(caught.value), run / "pipeline"
    assert f"{exported} is complete" in text and "\n" not in text
    assert "run the same command again" in text
    assert (exported / "README.md").exists() and not (run / "hub.json").exists()
    hub["broken"], hub["repos"]["me/memorized"] = False, False  # somebody has made it public
    with pytest.raises(ValueError, match="is complete, .* is public"):
        uploader.upload(run)
    assert hub["commits"] == []
    hub["repos"]["me/memorized"] = True
    uploader.upload(run)
    assert len(hub["commits"]) == 1 and json.loads((run / "hub.json").read_text())["commit"] == "1" * 40


def test_nothing_is_uploaded_without_a_repository(run: Path) -> None:
    before = sorted(run.rglob("*"))
    uploader = PushToHub()
    uploader.prepare()
    uploader.upload(run)
    assert sorted(run.rglob("*")) == before
