"""Images that stay on disk: read late, in other processes, and after they changed."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from data.captioned import Sample, UnreadableImage, load_captioned
from data.remote import Unreachable
from tests.data.image_files import noise, write_folder, write_shard


@pytest.fixture(params=["shard", "folder", "parquet", "saved"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Four images `a` to `d` of noise, which their letters seed."""
    images, ids = [noise(ord(letter)) for letter in "abcd"], list("abcd")
    if request.param == "shard":
        return str(write_shard(tmp_path / "0.tar", "abcd"))
    if request.param == "folder":
        files = {f"{i}.png": noise(ord(i)) for i in ids} | {f"{i}.txt": i for i in ids}
        return write_folder(tmp_path / "x", files)
    if request.param == "parquet":
        columns = {"png": images, "text": ids, "id": ids}
        pq.write_table(pa.table(columns), tmp_path / "0.parquet", row_group_size=3)
        return str(tmp_path / "0.parquet")
    import datasets

    cells = [{"bytes": image, "path": None} for image in images]
    rows = datasets.Dataset.from_dict({"image": cells, "text": ids, "id": ids})
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_images_are_read_in_any_order_and_held_nowhere(source: str) -> None:
    images = load_captioned(source)
    assert [images[index].image for index in (3, 0, 2, 1)] == [noise(ord(letter)) for letter in "dacb"]
    packed = [pickle.dumps(sample) for sample in images.samples]
    assert not any(noise(ord("a"))[30:60] in content for content in packed)
    assert pickle.loads(packed[3]).image == noise(ord("d"))


def test_workers_read_for_themselves(source: str) -> None:
    loader = DataLoader(load_captioned(source), batch_size=None, num_workers=1, collate_fn=shape)
    assert list(loader) == [(letter, (3, 6, 6)) for letter in "abcd"]


def shape(sample: Sample) -> tuple[str, tuple[int, ...]]:
    return sample.id, sample.pixels(6).shape


def test_what_changed_after_loading_is_one_named_error(tmp_path: Path) -> None:
    """Also across a worker's process."""
    path = write_shard(tmp_path / "0.tar", "ab")
    images = load_captioned(str(path))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UnreadableImage, match="image 'b' cannot be decoded: .*0.tar ends before") as error:
        images[1].pixels(4)
    assert error.value.id == "b" and str(UnreadableImage(str(error.value))) == str(error.value)
    path.unlink()
    with pytest.raises(Unreachable, match="data is gone, or its disk does not answer"):
        images[0].rgb()
