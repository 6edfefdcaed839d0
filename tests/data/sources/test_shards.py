"""Shards: which members make a sample, and what is counted."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from data.captioned import load_captioned
from data.prompts import safe_id
from data.sources.rows import NOT_READ, file_id
from data.sources.shards import read_shards
from tests.data.image_files import encoded, noise, write_shard, write_tar

IMAGES = [noise(number, "jpeg") for number in range(4)]


def captions(path: Path) -> tuple[dict[str, str], Counter]:
    images = load_captioned(str(path))
    return {sample.id: sample.caption for sample in images.samples}, images.skipped


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("names, expected, skipped", [
    # dots in keys
    ("v1.0.jpg v1.0.txt v1.1.jpg v1.1.txt", {"v1.0": "v1.0.txt", "v1.1": "v1.1.txt"}, {}),
    ("x.v1/0.jpg x.v1/0.txt", {"x.v1_0": "x.v1/0.txt"}, {}),
    ("a.b.jpg a.b.txt a.b.jpeg", {"a.b": "a.b.txt"}, {"further images of one key": 1}),
    # webdataset's own keys end at the first dot
    ("0.jpg 0.seg.jpg 0.txt 0.meta.json", {"0": "0.txt"}, {"further images of one key": 1}),
    ("0.image.jpg 0.txt", {"0": "0.txt"}, {}),
    ("0.a.jpg 0.b.jpg 0.txt 1.jpg 1.txt", {"1": "1.txt"}, {"without caption": 2, "without image": 1}),
    # members that repeat: the first counts
    ("1.jpg 1.txt 3.jpg 3.jpg 3.txt", {"1": "1.txt", "3": "3.txt"}, {"repeated members": 1}),
    ("1.jpg 1.JPG 1.txt 2.jpg 2.txt", {n: f"{n}.txt" for n in "12"}, {"repeated members": 1}),
    ("1.jpg 1.txt 1.jpg 1.txt", {"1": "1.txt"}, {"repeated members": 2}),
    # members that are no neighbours, and formats that are not read
    ("1.jpg 2.jpg 1.txt 2.txt", {"1": "1.txt", "2": "2.txt"}, {}),
    ("1.tiff 1.txt 2.jpg 2.txt", {"2": "2.txt"}, {NOT_READ: 1}),
])  # fmt: skip
def test_members_of_a_sample(tmp_path: Path, suffix: str, names: str, expected: dict, skipped: dict) -> None:
    path = tmp_path / f"a.{suffix}"
    with tarfile.open(path, "w:gz" if suffix == "tar.gz" else "w") as archive:
        for number, name in enumerate(names.split()):
            content = name.encode() if name.endswith("txt") else noise(number, "jpeg")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert captions(path) == (expected, skipped)


def test_what_a_row_lacks_is_named_with_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "a.tar", {"0.image.jpg": IMAGES[0], "0.caption.txt": b"a"})
    with pytest.raises(ValueError, match="1 without caption, 1 without image"):
        load_captioned(str(tmp_path))
    assert "'0.image': without caption: it has .jpg" in caplog.text and "it has .txt" in caplog.text


def test_a_caption_under_a_longer_key_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": IMAGES[0], "0.caption.txt": b"a"})
    with pytest.raises(ValueError, match="1 without caption"):
        load_captioned(str(tmp_path))
    assert "'0': without caption: it has .jpg, .caption.txt" in caplog.text


def test_of_many_shards_only_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor are they again in the next epoch of a stream."""
    for number in range(8):
        write_tar(tmp_path / f"{number}.tar", {"a.jpg": IMAGES[0], "a.jpeg": IMAGES[1], "a.txt": b"a"})
    skipped = Counter()
    for _ in range(2):
        assert len(list(read_shards([str(path) for path in sorted(tmp_path.iterdir())], skipped))) == 8
    assert skipped == {"further images of one key": 16}
    assert len(caplog.messages) == 5 and "further images of one key, such as ['a.jpeg']" in caplog.text


@pytest.mark.parametrize("names, apart", [
    ("0.jpg 1.jpg 0.txt 1.txt", 2), ("0.jpg 0.txt 1.jpg 1.txt 0.jpg", 0), ("0.jpg 0.seg.png 0.txt", 0),
])  # fmt: skip
def test_members_that_are_no_neighbours_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, apart: int
) -> None:
    """webdataset would give halves of such samples."""
    for shard in "ab":
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for name in names.split():
                content = b"text" if name.endswith("txt") else IMAGES[0]
                member = tarfile.TarInfo(f"{shard}{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    load_captioned(str(tmp_path))
    lines = [line for line in caplog.messages if "are no neighbours" in line]
    assert len(lines) == bool(apart)
    assert not apart or f"the members of {apart} keys are no neighbours, such as 'a0'" in lines[0]


def test_shards_joined_without_care_are_broken(tmp_path: Path) -> None:
    """What follows an end mark would be lost silently."""
    parts = [write_shard(tmp_path / f"{ids}.tar", ids) for ids in ("ab", "cd")]
    (tmp_path / "e.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert captions(tmp_path / "e.tar") == ({"a": "a a", "b": "a b"}, {"broken shards": 1})


def test_paths_that_exist_are_taken_to_the_letter(tmp_path: Path) -> None:
    folder = tmp_path / "photos [2024] {a,b}"
    folder.mkdir()
    for name in ("00000", "00001"):
        write_shard(folder / f"{name}.tar", name[-1])
    assert captions(folder / "00000.tar")[0] == {"0": "a 0"}
    assert len(captions(folder / "{00000..00001}.tar")[0]) == len(captions(folder / "*.tar")[0]) == 2


def test_images_of_a_plain_shard_stay_in_it(tmp_path: Path) -> None:
    rows = list(read_shards([str(write_shard(tmp_path / "a.tar", "ab"))], Counter()))
    assert all(not isinstance(row.image, bytes) for row in rows)
    assert [row.image.read() for row in reversed(rows)] == [noise(ord("b")), noise(ord("a"))]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7])
def test_a_cut_shard_gives_what_it_held_before_the_cut(tmp_path: Path, suffix: str, kept: float) -> None:
    """And is counted once; the next shard is read."""
    cut = write_shard(tmp_path / f"a.{suffix}", "abcdefgh")
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * kept)])
    write_shard(tmp_path / "b.tar", "z")
    images = load_captioned(str(tmp_path))
    *before, last = [sample.id for sample in images.samples]
    assert last == "z"
    assert 0 < len(before) < 8 and before == list("abcdefgh"[: len(before)])
    assert images.skipped["broken shards"] == 1
    assert "1 broken shards" in images.report()


def test_a_shard_cut_between_two_samples_counts_as_broken(tmp_path: Path) -> None:
    """There tarfile sees an ordinary end."""
    cut = write_shard(tmp_path / "a.tar", "abcd")
    with tarfile.open(cut) as archive:
        offset = archive.getmember("c.png").offset
    cut.write_bytes(cut.read_bytes()[:offset])
    images = load_captioned(str(cut))
    assert [sample.id for sample in images.samples] == ["a", "b"]
    assert images.skipped == {"broken shards": 1}


def test_samples_of_a_shard_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """Each under its reason; a JPEG cut short counts as unreadable, though its header is fine."""
    jpeg = noise(0, "jpeg")
    samples = {"a.jpg": jpeg, "a.txt": b"noise", "b.png": encoded(), "c.txt": b"no image"}
    broken = {"d.jpg": jpeg[: len(jpeg) // 2], "d.txt": b"half", "e.webp": b"RIFF", "e.txt": b"none"}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", samples | broken)))
    assert [sample.id for sample in images.samples] == ["a"]
    assert images.skipped == {"without caption": 1, "without image": 1, "unreadable images": 2}


def test_a_shard_without_txt_takes_the_caption_from_its_json(tmp_path: Path) -> None:
    """What is no text, or no JSON, is no caption; a `.txt` counts before it, though empty."""
    described = {"a": b'{"caption": "a dog"}', "b": b'{"caption": 7}', "c": b"{", "d": b'{"caption": null}'}
    files = {f"{key}.jpg": noise(ord(key), "jpeg") for key in "abcde"}
    files |= {f"{key}.json": content for key, content in described.items()}
    files |= {"e.json": b'{"caption": "no"}', "e.txt": b""}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", dict(sorted(files.items())))))
    assert [(sample.id, sample.caption) for sample in images.samples] == [("a", "a dog")]
    assert images.skipped == {"captions that are no text": 1, "without caption": 3}


def test_names_in_a_shard_become_safe_ids(tmp_path: Path) -> None:
    """They would name files later."""
    long = "x" * 90
    files: dict[str, bytes] = {}
    for number, key in enumerate(("/abs/1", "sub\\2", f"{long}/{long}")):
        files |= {f"{key}.png": noise(number), f"{key}.txt": b"a"}
    ids = [sample.id for sample in load_captioned(str(write_tar(tmp_path / "a.tar", files))).samples]
    assert ids[:2] == ["abs_1", "sub_2"]
    assert len(ids[2]) < 120 and "/" not in ids[2]
    assert file_id("../../etc/passwd") == "etc_passwd"
    assert safe_id(file_id("..")) and safe_id(file_id("")) and file_id("..") != file_id("")


def test_a_shard_is_never_run_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset runs what follows `pipe:`."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "pipe:touch run; cat .tar", "a")
    assert len(load_captioned(".")) == 1
    assert not (tmp_path / "run").exists()


def test_formats_in_a_shard(tmp_path: Path) -> None:
    """Every one that folders have; of two images of a sample the JPEG counts before the GIF."""
    files = {"a.gif": noise(0, "gif"), "a.txt": b"a", "b.gif": noise(1, "gif"), "b.jpg": noise(2, "jpeg")}
    images = load_captioned(str(write_tar(tmp_path / "a.tar", files | {"b.txt": b"b"})))
    assert [sample.image for sample in images.samples] == [noise(0, "gif"), noise(2, "jpeg")]
