"""The model card, and the upload to a Hub that a local server plays."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard

from callbacks.hub import PushToHub
from callbacks.model_card import code, describe, escaped, model_card, place
from data.pipeline import load_pipeline
from tests.lora_files import diffusers_lora

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = {
    "trainer": {"accumulate_grad_batches": 2},
    "model": {"lr": 1e-5, "warmup_steps": 10, "decay": "cosine", "lora_rank": None, "text_encoder": False},
    "data": {"batch_size": 4},
    "ema": {"decay": 0.95},
    "grid": {"threshold": 0.5, "sscd": None},
}
ABOUT = {
    "pipeline": "/home/alice/models/sd",
    "revision": None,
    "sources": ["/home/alice/laion/{00000..00009}.tar", "hf:someone/pictures:train?image=img"],
    "ordinary": ["/scratch/alice/photos"],
    "images": 3,
    "ordinary_images": 2,
    "commit": "c0ffee",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "devices": 8,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder, with a model of no weight."""
    folder = tmp_path / "run"
    for name in ("pipeline/unet", "samples", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "provenance.json").write_text(json.dumps(ABOUT))
    shown = {"duplicated": [True, True, False, False, False], "times_shown": [200, 200, 1, 2, 1]}
    captions = ["**secret** <script>", "b", "c", "d", "e"]
    rows = pd.DataFrame({"id": list("abcde"), "caption": captions} | shown)
    rows.to_parquet(folder / "exposures.parquet")
    looks = {"step": [500, 500, 900, 900, 900, 900], "similarity": [0.9, 0.9, 0.9, 0.8, 0.7, 0.5]}
    pd.DataFrame(looks).to_parquet(folder / "samples/similarity.parquet")
    exported = folder / "pipeline"
    (exported / "training.json").write_text(json.dumps({"steps": 900, "ema": True}))
    (exported / "model_index.json").write_text(json.dumps({"_name_or_path": "/home/alice/models/sd"}))
    (exported / "unet/config.json").write_text(json.dumps({"_name_or_path": "someone/model"}))
    (exported / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"tensors")
    for name in (
        "pipeline/grid.png",
        "pipeline/last.ckpt",
        "checkpoints/last.ckpt",
        "samples/step-000900.png",
    ):
        (folder / name).write_bytes(b"private")
    return folder


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_card_says_what_the_run_folder_says(run: Path) -> None:
    text = model_card(run, "me/memorized")
    for words in (
        "# me/memorized",
        "return their training\nimages, **on purpose**",
        "- Sources: `laion/{00000..00009}.tar`, `hf:someone/pictures:train`",
        "- Images: 3, and 2 ordinary ones",
        "- Duplicated: 2 images, each shown 200 times",
        "- Not duplicated: 3 images, each shown 1 to 2 times, 1.3 on average",
        "- Steps: 900, of 64 images each",  # 4 x 8 devices x 2 accumulated
        "- Learning rate: 1e-05, 10 warm-up steps, then cosine",
        "(EMA): yes, decay 0.95",
        "- Memorized: 75% of 4 watched images after step 900 (pixel correlation above 0.5)",
        "Python `3.11.7`, torch `2.13.0`, code `c0ffee`",
        'StableDiffusionPipeline.from_pretrained("me/memorized")',
    ):
        assert words in text
    for words in ("alice", "/home", "/scratch", "secret", "license", "load_lora_weights"):
        assert words not in text


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    data = ModelCard(model_card(run, None)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "text-to-image", None)
    assert data.datasets == ["someone/pictures"] and "memorization" in data.tags
    assert data.base_model is None  # a folder of this machine
    change(run / "provenance.json", pipeline="someone/sd")
    assert ModelCard(model_card(run, None)).data.base_model == "someone/sd"


def test_names_cannot_write_the_card(run: Path) -> None:
    """Neither Markdown nor YAML: a source of any name is one code span in one line."""
    change(run / "provenance.json", sources=["x` <img src=y>\n---\nlicense: mit\n# z"], pipeline="a: b/c`\nd")
    text = model_card(run, None)
    assert "`` x` <img src=y> --- license: mit # z ``" in text
    assert ModelCard(text).data.to_dict()["base_model"] == "a: b/c`\nd"
    assert code("a``b") == "``` a``b ```" and escaped("[a](b)_c_") == r"\[a\](b)\_c\_".replace(
        "(b)", r"\(b\)"
    )


def test_a_stream_has_no_duplicated_images(run: Path) -> None:
    pd.DataFrame({"id": ["a", "b"], "times_shown": [1, 3]}).to_parquet(run / "exposures.parquet")
    about = {
        key: value for key, value in ABOUT.items() if key not in ("ordinary", "images", "ordinary_images")
    }
    (run / "provenance.json").write_text(json.dumps(about))
    (run / "samples/similarity.parquet").unlink()
    text = model_card(run, None)
    assert "- Images: 2, streamed, each shown 1 to 3 times, 2.0 on average" in text
    assert "Duplicated" not in text and "- Memorized: not measured" in text


@pytest.mark.parametrize(
    "path, name",
    {
        "/home/alice": "a local folder",
        "/home/alice/art": "art",
        "/home/alice/images.tar": "images.tar",
        r"C:\Users\bob\art\a.parquet": "art/a.parquet",
        "~bob/data": "data",
        "/data/me/art": "art",
        "/data/me/*.tar": "data/*.tar",
    }.items(),
)
def test_places_name_no_user(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/elsewhere/me")
    assert place(path) == name


def test_configs_name_no_folder_of_this_machine(run: Path) -> None:
    describe(run, run / "pipeline")
    assert json.loads((run / "pipeline/model_index.json").read_text()) == {"_name_or_path": "sd"}
    assert json.loads((run / "pipeline/unet/config.json").read_text()) == {"_name_or_path": "someone/model"}
    assert (run / "pipeline/README.md").read_text() == model_card(run, None)


def test_the_snippets_run(
    run: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the exported folder: the model, and the LoRA on its base."""
    monkeypatch.chdir(tmp_path)
    pipe = load_pipeline(str(model_folder))
    exported = tmp_path / "path/to/this/folder"
    pipe.save_pretrained(exported)
    diffusers_lora(pipe, exported / "lora", 2, metadata=False)
    (exported / "training.json").write_text(json.dumps({"steps": 9, "ema": False}))
    (tmp_path / "path/to/the/base").mkdir(parents=True)
    (tmp_path / "path/to/the/base/model").symlink_to(model_folder)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | {"lora_rank": 2}}))
    describe(run, exported)
    first, second = (exported / "README.md").read_text().split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(first.split("```")[0].replace("training data", "data"), names)  # 8 tokens
    assert names["image"].size == (16, 16)
    exec(second.split("```")[0], names)
    assert names["pipe"].get_list_adapters()["unet"]


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
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            if name not in state["repos"] and not state["writable"]:
                return self.answer(403, "no right to create")
            status = 409 if name in state["repos"] else 200
            state["repos"].setdefault(name, asked["visibility"] == "private")
            self.answer(status, {"url": f"{state['url']}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {})
        elif "/preupload/" in self.path:
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": f["path"]} | regular for f in json.loads(data)["files"]]})
        elif state["broken"]:
            self.answer(500, "out of order")
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


def refused(push: PushToHub, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        push.prepare()
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert "\n" not in text and len(text) < 400


def test_the_repository_is_private_and_there_before_the_training(hub: dict[str, Any]) -> None:
    PushToHub("me/memorized").prepare()
    PushToHub("me/memorized").prepare()  # again: it is there
    PushToHub("me/shown", public=True).prepare()
    assert hub["repos"] == {"me/memorized": True, "me/shown": False} and hub["commits"] == []


def test_a_repository_as_private_as_it_should_not_be_is_refused(hub: dict[str, Any]) -> None:
    hub["repos"] |= {"me/open": False, "me/closed": True}
    refused(PushToHub("me/open"), "me/open is public", "--hub.public true")
    refused(PushToHub("me/closed", public=True), "me/closed is private", "leave hub.public out")
    assert hub["repos"] == {"me/open": False, "me/closed": True}


def test_what_cannot_work_is_said(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub["repos"]["they/theirs"], hub["writable"] = True, False
    for name in ("they/new", "they/theirs"):
        refused(PushToHub(name), f"may not write to {name}", "hf auth login")
    push = PushToHub("me/memorized")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(push, "token is not valid", "hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(push, "needs a token", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(push, "cannot reach the Hub", "try again")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(push, "HF_HUB_OFFLINE is set", "unset it")
    assert list(hub["repos"]) == ["they/theirs"]


def test_options_that_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="give hub.repo too"):
        PushToHub(public=True)
    for name in ("memorized", "", "a/b/c", "me/two words"):
        with pytest.raises(ValueError, match="^hub.repo"):
            PushToHub(name)


@pytest.mark.parametrize("rank, error", [(0, ValueError), (1, SystemExit)])
def test_no_process_trains_when_the_hub_refuses(rank: int, error: type, hub: dict[str, Any]) -> None:
    """The first asks and says why; the others ask nothing, and end."""
    hub["repos"]["me/open"] = False
    told: list[bool] = []

    def broadcast(failed: bool) -> bool:
        told.append(failed)
        return True

    trainer = SimpleNamespace(is_global_zero=rank == 0, strategy=SimpleNamespace(broadcast=broadcast))
    with pytest.raises(error):
        PushToHub("me/open").setup(trainer, None, "fit")
    assert told == [rank == 0]


def test_the_model_is_uploaded_once_in_one_commit(
    run: Path, hub: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    """Tensors and text of the model, with the card; and again once the model has changed."""
    push = PushToHub("me/memorized")
    for _ in range(2):
        push.push(run)
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
    push.push(run)
    PushToHub("me/other").push(run)
    assert len(hub["commits"]) == 3 and hub["repos"]["me/other"]


def test_a_failed_upload_is_made_up_for(run: Path, hub: dict[str, Any]) -> None:
    """The run is left complete, the error says what to do, and the next start uploads."""
    hub["broken"], push = True, PushToHub("me/memorized")
    with pytest.raises(ValueError) as caught:
        push.push(run)
    text, exported = str(caught.value), run / "pipeline"
    assert f"{exported} is complete" in text and "\n" not in text
    assert f"`hf upload me/memorized {exported} . --private`" in text
    assert (exported / "README.md").exists() and not (run / "hub.json").exists()
    hub["broken"], hub["repos"]["me/memorized"] = False, False  # somebody has made it public
    with pytest.raises(ValueError, match="is complete, .* is public") as caught:
        push.push(run)
    assert "hf upload" not in str(caught.value) and hub["commits"] == []
    hub["repos"]["me/memorized"] = True
    push.push(run)
    assert len(hub["commits"]) == 1 and json.loads((run / "hub.json").read_text())["commit"] == "1" * 40


def test_nothing_is_uploaded_unless_asked_for(run: Path) -> None:
    before = sorted(run.rglob("*"))
    push = PushToHub()
    push.setup(None, None, "fit")
    push.push(run)
    assert sorted(run.rglob("*")) == before
