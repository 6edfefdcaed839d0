"""Data and prompts on object stores: fsspec's in memory, and a real S3 server where moto is installed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data import remote
from data.captioned import load_captioned
from data.copies import copy_folder
from data.prompts import load_prompts
from data.prompts.fingerprint import source_fingerprint
from data.repeats.pictures import pictures_of
from tests.data.image_files import captions_of, noise, write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTRACTION_BASIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT", 0)
    return tmp_path / "cache/remote"


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def shards(folder: Path) -> Path:
    (folder / "shards").mkdir(parents=True)
    for number, ids in enumerate(("ab", "cd")):
        write_shard(folder / f"shards/0000{number}.tar", ids)
    write_folder(folder, {"prompts.txt": "one\ntwo\n", "blip.json": '{"a": ["new"]}'})
    return folder


def check_data(bucket: str, put: Callable[[Path], Any], folder: Path, cache: Path) -> None:
    """A pattern, a glob, a folder, captions, prompts; one shard at a time in the cache; another content."""
    put(shards(folder))
    local, url = captions_of(folder / "shards"), f"{bucket}/shards"
    for source in (f"{url}/{{00000..00001}}.tar", f"{url}/*.tar", url):
        assert captions_of(source) == local
    assert captions_of(f"{url}/*.tar?captions={bucket}/blip.json")["a"] == ("new",)
    assert [prompt.text for prompt in load_prompts(f"{bucket}/prompts.txt")] == ["one", "two"]
    assert [prompt.id for prompt in load_prompts(f"{url}/*.tar")] == list("abcd")
    for path in cache.rglob("*.tar"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTRACTION_BASIN_REMOTE_GB", "0")
        images = load_captioned(f"{url}/*.tar")
        assert [sample.image for sample in images.samples] == [noise(ord(letter)) for letter in "abcd"]
        assert [path.name for path in cache.rglob("*.tar")] == ["00001.tar"]
    before = source_fingerprint(f"{url}/*.tar")
    assert source_fingerprint(f"{url}/*.tar") == before
    write_shard(folder / "shards/00001.tar", "xyz")
    put(folder)
    assert source_fingerprint(f"{url}/*.tar") != before and list(captions_of(url)) == list("abxyz")


def test_data_lies_in_a_store(memory: Any, tmp_path: Path, cache: Path) -> None:
    check_data(
        "memory://bucket",
        lambda folder: memory.put(f"{folder}/", "/bucket", recursive=True),
        tmp_path / "data",
        cache,
    )


@pytest.mark.slow
def test_data_lies_on_s3(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a run's results are copied there and back."""
    s3fs = pytest.importorskip("s3fs", reason="pip install -e '.[s3]'")
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    moto = server.ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (
            ("ACCESS_KEY_ID", "test"),
            ("SECRET_ACCESS_KEY", "test"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        s3 = s3fs.S3FileSystem()
        s3.mkdir("bucket")

        def put(folder: Path) -> None:
            s3.put(f"{folder}/", "bucket", recursive=True)
            s3.invalidate_cache()

        check_data("s3://bucket", put, tmp_path / "data", cache)
        check_copies("s3://bucket/run", tmp_path)
        with pytest.raises(FileNotFoundError, match="no file matches 's3://bucket/none"):
            load_captioned("s3://bucket/none*.tar")
    finally:
        moto.stop()


def check_copies(url: str, folder: Path) -> None:
    write_folder(folder / "run", {"config.yaml": "a: 1", "images/a.png": noise(0), ".lock": ""})
    assert copy_folder(str(folder / "run"), url) == (2, 0) and copy_folder(str(folder / "run"), url) == (0, 2)
    write_folder(folder / "run", {"config.yaml": "a: 2"})
    assert copy_folder(str(folder / "run"), url) == (1, 1)
    back = str(folder / "back")
    assert copy_folder(url, back) == (2, 0) and copy_folder(url, back) == (0, 2)
    assert (folder / "back/config.yaml").read_text() == "a: 2"
    assert (folder / "back/images/a.png").read_bytes() == noise(0)


def test_a_run_is_copied_and_fetched(memory: Any, tmp_path: Path) -> None:
    """Only what changed; without what is being written."""
    check_copies("memory://bucket/run", tmp_path)
    with pytest.raises(ValueError, match="must be a URL"):
        copy_folder("a", "b")


def test_a_copy_that_breaks_off_goes_on(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied is not copied again; what was not, is, whatever was there before."""
    folder = write_folder(tmp_path / "run", {"a.txt": "a", "b.txt": "b"})
    memory.pipe("/bucket/run/b.txt", b"old")
    put = memory.put_file
    with monkeypatch.context() as patch:
        patch.setattr(remote, "ATTEMPTS", 1)
        patch.setattr(memory, "put_file", lambda here, there: put(here, there) if "a.txt" in here else 1 / 0)
        with pytest.raises(remote.Unreachable, match=r"b\.txt"):
            copy_folder(folder, "memory://bucket/run")
    assert copy_folder(folder, "memory://bucket/run") == (1, 1)
    assert memory.cat("/bucket/run/b.txt") == b"b"


def test_a_store_that_is_gone_is_no_damaged_table(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/bucket/a.parquet", b"whatever")
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    monkeypatch.setattr(memory, "get_file", lambda *_: 1 / 0)
    with pytest.raises(remote.Unreachable, match="a.parquet"):
        load_captioned("memory://bucket/a.parquet")


@pytest.mark.parametrize("failures", [2, 4])
def test_a_store_is_asked_again(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    failures: int,
) -> None:  # fmt: skip
    """Four times at most, each counted in the log; no half of a file stays, and no data are left out."""
    memory.put(str(write_shard(tmp_path / "a.tar", "ab")), "/bucket/a.tar")
    get, left = memory.get_file, iter(range(failures))

    def fail(there: str, here: str) -> None:
        Path(here).write_bytes(b"half")
        if next(left, None) is not None:
            raise ConnectionResetError("reset by peer")
        get(there, here)

    monkeypatch.setattr(memory, "get_file", fail)
    if failures < remote.ATTEMPTS:
        assert list(captions_of("memory://bucket/a.tar")) == ["a", "b"]
    else:
        why = "cannot reach memory:///bucket/a.tar in 4 attempts: reset by peer"
        with pytest.raises(remote.Unreachable, match=why):
            load_captioned("memory://bucket/a.tar")
    said = [record.getMessage() for record in caplog.records if "follows" in record.getMessage()]
    assert said[0] == "memory:///bucket/a.tar: attempt 2 of 4 follows, after reset by peer"
    assert len(said) == min(failures, 3)
    assert not list((tmp_path / "cache").rglob(".*.tar"))


def test_a_store_that_is_gone_hides_no_repeats(
    memory: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that cannot be fetched is none that repeats nothing."""
    memory.put(str(write_shard(tmp_path / "a.tar", "ab")), "/bucket/a.tar")
    samples = load_captioned("memory://bucket/a.tar").samples
    [path] = cache.rglob("*.tar")
    path.unlink()
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    monkeypatch.setattr(type(memory), "get_file", lambda *_: 1 / 0)  # threads have stores of their own
    with pytest.raises(remote.Unreachable, match="a.tar"):
        pictures_of(samples)


@pytest.mark.parametrize("source, error", [
    ("s3://key:secret@bucket/a.tar", r"s3://bucket/a.tar: leave the key out of the URL"),
    ("nowhere://bucket/a.tar", "nowhere://bucket/a.tar: Protocol not known: nowhere"),
    ("memory://bucket/none.tar", "no file matches 'memory://bucket/none.tar'"),
    ("memory://bucket/text", "has no shards and no parquet files"),
    ("memory://bucket/up/../a.tar", "would leave the folder of the cache"),
])  # fmt: skip
def test_what_cannot_be_read_is_said(memory: Any, source: str, error: str) -> None:
    memory.pipe({"/bucket/text/a.txt": b"a", "/bucket/up/../a.tar": b"a"})
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        load_captioned(source)
