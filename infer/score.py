"""Score predict run folders against the training set, and sum up a comparison."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from data.captioned import CaptionedImages
from infer.alignment import ClipScore
from infer.runfolder import write_atomically
from infer.similarity import Descriptor, embed_all, match


@dataclass
class TrainingSet:
    """What the model was trained on; per measure (a prefix of columns) the descriptor and the embeddings."""

    images: CaptionedImages
    measures: dict[str, tuple[Descriptor, Tensor]]

    @classmethod
    def embed(
        cls, images: CaptionedImages, resolution: int, descriptors: dict[str, Descriptor]
    ) -> "TrainingSet":
        """Embed all training images, at the generations' resolution, with each descriptor."""
        embedded = {
            prefix: (descriptor, embed_all((sample.rgb(resolution) for sample in images.samples), descriptor))
            for prefix, descriptor in descriptors.items()
        }
        return cls(images, embedded)


def score(folder: Path, training: TrainingSet, clip: ClipScore) -> pd.DataFrame:
    """Fill `similarity_own`, `similarity_top`, `top_train_id`, `clip_score`, `sscd_*` of a run's rows.

    Rows that failed (a black image) get no score.
    """
    rows = pd.read_parquet(folder / "samples.parquet")

    def images() -> Iterator[Image.Image]:  # ten thousand at once would not fit
        return (Image.open(folder / path).convert("RGB") for path in rows["image"])

    own = [training.images.position.get(key) for key in rows["prompt_id"]]
    for prefix, (descriptor, embeddings) in training.measures.items():
        found = match(embed_all(images(), descriptor), embeddings, own)
        rows[f"{prefix}_own"], rows[f"{prefix}_top"] = found.own.numpy(), found.top.numpy()
        if prefix == "similarity":
            rows["top_train_id"] = [training.images[index].id for index in found.top_index.tolist()]
    rows["clip_score"] = clip(images(), list(rows["prompt"]))
    scores = [name for name in rows if name.endswith(("_own", "_top", "top_train_id", "clip_score"))]
    rows[scores] = rows[scores].where(rows["failed_step"].isna())
    write_atomically(folder / "samples.parquet", lambda part: rows.to_parquet(part, index=False))
    return rows


def summarize(mitigation: str, rows: pd.DataFrame) -> dict[str, object]:
    """One row of the comparison: means, 95th percentiles and costs over all images of a mitigation."""
    out: dict[str, object] = {"mitigation": mitigation, "images": len(rows)}
    for prefix in [column.removesuffix("_own") for column in rows if column.endswith("_own")]:
        own, top = rows[f"{prefix}_own"], rows[f"{prefix}_top"]
        out |= {f"{prefix}_own_mean": own.mean(), f"{prefix}_own_std": own.std(ddof=0)}
        out |= {f"{prefix}_own_p95": own.quantile(0.95), f"{prefix}_top_mean": top.mean()}
        out |= {f"{prefix}_top_p95": top.quantile(0.95)}
    transition = rows["transition_timestep"].astype(float)
    return out | {
        "failed": int(rows["failed_step"].notna().sum()),
        "share_above_05": (rows["similarity_own"].dropna() > 0.5).mean(),
        "clip_score_mean": rows["clip_score"].mean(),
        "fid": np.nan,
        "nfe_mean": rows["nfe"].mean(),
        "seconds_per_image": rows["seconds"].mean(),
        "fired_share": transition.notna().mean() if mitigation not in ("none", "base_model") else np.nan,
        "transition_timestep_median": transition.median(),
    }
