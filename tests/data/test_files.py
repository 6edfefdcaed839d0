"""Whole files, digests of whole files, and URLs without secrets."""

import json
import os
from pathlib import Path

import pytest

from data import cli, files
from data.files import (
    redacted,
    remembered_sha256,
    remove_temporary_files,
    sha256_of,
    write_atomically,
    write_json,
)
from data.prompts.fingerprint import source_fingerprint


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_atomically(path, lambda part: part.write_text("whole"))

    def cut(part: Path) -> None:
        part.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, cut)
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    """And nothing else, hidden or not."""
    kept = [tmp_path / name for name in (".gitignore", "images/.keep.png", "images/a.png")]
    left: list[Path] = []
    (tmp_path / "images").mkdir()
    for path in kept:
        path.touch()
    for path in (tmp_path / "config.yaml", tmp_path / "images/b.png", tmp_path / "part"):
        write_atomically(path, lambda part: left.append(part) or part.touch())
        path.rename(left[-1])
    remove_temporary_files(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty memory of digests, that takes files of any size."""
    monkeypatch.setenv("ATTRACTION_BASIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "REMEMBERED", 1)
    return tmp_path / "cache"


def ten_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = files.time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + 10**10)


def test_a_large_file_is_read_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And again as soon as it may have changed, its size and the time of its last write as they were."""
    path, reads = tmp_path / "model", []
    monkeypatch.setattr(files, "sha256_of", lambda path: reads.append(path) or sha256_of(path))
    path.write_text("one")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    first = remembered_sha256(path)
    assert first == sha256_of(path) and not cache.exists()  # too new to be sure
    ten_seconds_later(monkeypatch)
    assert [remembered_sha256(path) for _ in range(3)] == [first] * 3 and len(reads) == 2
    path.write_text("two")
    os.utime(path, ns=times)
    assert remembered_sha256(path) == sha256_of(path) != first


@pytest.mark.parametrize("content", ["", "[]", "{", '{"PATH": 3}', '{"PATH": []}', None])
def test_a_memory_that_cannot_be_used_is_no_harm(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "model"
    path.write_text("one")
    if content is None:  # it cannot be written either
        cache.write_text("a file")
    else:
        cache.mkdir()
        (cache / "digests.json").write_text(content.replace("PATH", str(path)))
    ten_seconds_later(monkeypatch)
    assert remembered_sha256(path) == sha256_of(path)


def test_a_large_file_of_prompts_counts_whole(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"one\n" + b"two\n" * (5 << 20))
    before = source_fingerprint(str(path))
    with path.open("r+b") as file:
        file.write(b"six\n")
    assert source_fingerprint(str(path)) != before


@pytest.mark.parametrize(("text", "safe"), [
    ("https://host/x/y.pt?X-Amz-Signature=a%2Fb&c=d#e", "https://host/x/y.pt"),
    ("https://user:p@ss@host:80/model.safetensors", "https://host:80/model.safetensors"),
    ("cannot get 'https://user@host/a?key=b' (403)", "cannot get 'https://host/a' (403)"),
    ("from https://host/a.pt?key=b: not found", "from https://host/a.pt: not found"),
    ("https://host?key=it's", "https://host"),
    ("(from https://host/a.pt?key=b), c", "(from https://host/a.pt), c"),
    ("pipe:curl -s https://u:p@h/{0..9}.tar?key=1 || true", "pipe:curl -s https://h/{0..9}.tar || true"),
    ("s3://key:secret@bucket/x", "s3://bucket/x"),
    ("photos?captions=blip.json", "photos?captions=blip.json"),
    ("hf:owner/name?config=x", "hf:owner/name?config=x"),
    ("a@b.c, what? 7:30 #1", "a@b.c, what? 7:30 #1"),
])  # fmt: skip
def test_a_url_keeps_no_secret(text: str, safe: str) -> None:
    assert redacted(text) == safe
    assert redacted({"a": [text, 1, None]}) == {"a": [safe, 1, None]}


def test_json_and_errors_keep_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def fail(args: list[str]) -> None:
        raise ValueError(f"no model {args[0]!r}")

    url = "https://user:word@host/sscd.pt?X-Amz-Signature=0123"
    write_json(tmp_path / "about.json", {"notes": [f"SSCD {url}, protocol dcr"]})
    assert json.loads((tmp_path / "about.json").read_text()) == {
        "notes": ["SSCD https://host/sscd.pt, protocol dcr"]
    }
    assert cli.run("program", "help", {"score": fail}, ["score", url]) == 1
    assert capsys.readouterr().err == "error: no model 'https://host/sscd.pt'\n"
