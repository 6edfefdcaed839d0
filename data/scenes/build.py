"""Scenes -> webdataset shards in img2dataset's form, the same bytes every time."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import webdataset as wds
from tqdm import tqdm

from data.files import write_atomically, write_json
from data.scenes.captions import captions_of
from data.scenes.compose import Scene

SHARD = 10_000  # scenes in a shard


def sample(key: str, scene: Scene) -> dict:
    """One scene as a webdataset sample of bytes: image, caption, and what the scene shows and where."""
    image = io.BytesIO()
    scene.image().save(image, "png")
    captions = captions_of(scene)
    return {
        "__key__": key,
        "png": image.getvalue(),
        "txt": captions[0].encode(),
        "json": json.dumps({"caption": captions[0], **asdict(scene)}).encode(),
    }


def write_part(folder: Path, name: str, scenes: list[Scene]) -> None:
    """Write the folder `name`: shards, and captions.json with all captions of each scene."""
    samples = {f"{name}_{index:06d}": scene for index, scene in enumerate(scenes)}

    def write(part: Path) -> None:
        part.mkdir()
        rows = iter(tqdm(samples.items(), desc=name, unit="scene"))
        for index in range(0, len(samples), SHARD):
            with wds.TarWriter(
                str(part / f"{name}-{index // SHARD:05d}.tar"), mtime=0, user="", group=""
            ) as tar:
                for _, row in zip(range(SHARD), rows, strict=False):
                    tar.write(sample(*row))
        write_json(part / "captions.json", {key: captions_of(scene) for key, scene in samples.items()})

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, write)
