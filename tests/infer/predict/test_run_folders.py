"""What a run folder of `python -m infer predict` may hold already: another's, an older one, the same one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from infer.predict.claim import claim, differences
from infer.predict.parts import holds_images
from tests.infer.predict.runs import command, refused, summary_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "content",
    [b"!!python/object:some.Thing {}\n", b"a: [\n", b"\xff\xfe\x00", b"3\n", b"mitigations: 3\n", b""],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    """And nothing in it is touched."""
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="holds something else than a predict run: choose another folder"):
        claim(tmp_path, {"mitigations": []})
    assert (tmp_path / "config.yaml").read_bytes() == content


def test_a_config_keeps_no_secret_and_may_be_signed_again(tmp_path: Path) -> None:
    for signature in ("one", "two"):
        url = f"https://user:{signature}@host/sscd.pt?X-Amz-Signature={signature}"
        claim(tmp_path, {"mitigations": [{"class_path": "Mine", "init_args": {"model": url}}]})
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images/a-0.png").touch()
        rows = pd.DataFrame({"prompt_id": ["a"], "sample": [0], "image": ["images/a-0.png"]})
        rows.to_parquet(tmp_path / "samples.parquet")
        config = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert config["mitigations"][0]["init_args"] == {"model": "https://host/sscd.pt"}


def test_only_what_a_killed_run_left_is_removed(predict: Callable[..., Path], tmp_path: Path) -> None:
    """Folders and files of others stay, also those that are hidden."""
    images = tmp_path / "run" / "images"
    (images / ".ipynb_checkpoints").mkdir(parents=True)
    kept, left = images / ".hidden.png", images / f".{'0f' * 16}.png"
    kept.touch()
    left.touch()
    out = predict("--prompt", "red square")
    assert summary_of(out)["images"] == 1
    assert kept.exists() and (images / ".ipynb_checkpoints").is_dir() and not left.exists()


def test_another_spelling_of_a_path_is_the_same_run(
    predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slash at its end, or from the current folder."""
    out = predict("--prompt", "red square")
    before = (out / "images").stat().st_mtime_ns
    monkeypatch.chdir(tiny_pipeline.parent)
    for spelling in (f"{tiny_pipeline}/", tiny_pipeline.name, f"./{tiny_pipeline.name}/."):
        predict("--prompt", "red square", "--model.pipeline", spelling)
        assert (out / "images").stat().st_mtime_ns == before
        assert yaml.safe_load((out / "config.yaml").read_text())["pipeline"] == spelling


def test_another_model_of_the_same_weights_is_another(
    predict: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Models are compared by their paths, too."""
    other = shutil.copytree(tiny_pipeline, tmp_path / "other")
    out = predict("--prompt", "red square")
    error = refused(command(other, out, 4, "--prompt", "red square"), capsys)
    assert f"pipeline: '{tiny_pipeline}' -> '{other}'" in error
    assert differences({"lora": "/nowhere/"}, {"lora": "/nowhere"}) == ["lora: '/nowhere/' -> '/nowhere'"]


def test_only_what_differs_is_warned() -> None:
    """Of nested settings too; of another class its name alone."""

    def rule(name: str, **options: object) -> dict:
        return {"class_path": f"callbacks.some.{name}", "init_args": options}

    before = {
        "seed": 0,
        "resolution": None,
        "mitigations": [rule("Detour", scale=1.0, transition=rule("A", t=1))],
    }
    assert differences(before, before) == []
    after = {"seed": 1, "mitigations": [rule("Detour", scale=2.0, transition=rule("A", t=2, gate=3))]}
    assert differences(before, after) == [
        "mitigations.0.scale: 1.0 -> 2.0", "mitigations.0.transition.gate: None -> 3",
        "mitigations.0.transition.t: 1 -> 2", "seed: 0 -> 1",
    ]  # fmt: skip
    other = before | {"mitigations": [rule("Detour", scale=1.0, transition=rule("B", t=2))]}
    assert differences(before, other) == ["mitigations.0.transition: A -> B"]
    assert differences(before, before | {"mitigations": []}) == ["mitigations.0: Detour -> None"]


def test_a_table_that_is_cut_is_named_and_made_again(predict: Callable[..., Path]) -> None:
    """And not the library's message alone, which says no name."""
    out = predict("--prompt", "red square")
    rows = pd.read_parquet(out / "samples.parquet")
    path = out / "samples.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{path} cannot be read .*: delete it, and predict makes again"):
        holds_images(out)
    path.unlink()
    assert len(pd.read_parquet(predict("--prompt", "red square") / "samples.parquet")) == len(rows)
