"""The faults: what happens to which command."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from tests.faults.cases import Run
from tests.faults.injections import (
    Seen,
    broken,
    clock_back,
    full_disk,
    killed,
    lost_shard,
    read_only,
    slow_disk,
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """`what` happens to the command `case`: `inject` does it to a run and says what came of it."""

    name: str
    what: str
    case: str
    inject: Callable[[Run, Random], Seen]
    tries: int | None = 1  # at most; None: --repeats


def kill(case: str) -> Fault:
    return Fault(f"kill {case}", "a rank is killed", case, killed, None)


def disk(case: str, what: str, pattern: str, where: str = "out") -> Fault:
    return Fault(f"disk {what}", f"full disk: {what}", case, partial(full_disk, where, pattern), 2)


FAULTS = [
    *map(kill, ("fit", "fit, 2 ranks", "predict", "predict, 2 ranks", "score", "compare")),
    disk("fit", "checkpoint", "/last.ckpt"),
    disk("fit", "exposures", "/exposures.parquet"),
    disk("fit", "metrics", "/metrics.csv"),
    disk("fit", "sheet of samples", "/samples/step-*.png"),
    disk("fit", "similarities", "/similarity.parquet"),
    disk("fit", "provenance", "/provenance.json"),
    disk("fit", "exported model", "/out/pipeline"),
    disk("fit", "latent cache", ".safetensors", "cache"),
    disk("fit, file://", "remote cache", "/remote/*.tar", "user_cache"),
    disk("stream", "skipped images", "/skipped.json"),
    disk("predict", "config", "/config.yaml"),
    disk("predict", "images", "/images/*.png"),
    disk("predict", "rows of a batch", "/parts/*.samples.parquet"),
    disk("predict", "merged traces", "/out/traces.parquet"),
    disk("predict", "merged rows", "/out/samples.parquet"),
    disk("predict", "summary", "/summary.json"),
    disk("predict, 2 ranks", "images of 2 ranks", "/images/*.png"),
    disk("score", "scores", "/out/samples.parquet"),
    disk("score", "table", "/out/table.parquet"),
    disk("score", "cache of embeddings", "/cache/*", "cache"),
    disk("compare", "table of a comparison", "/comparison.parquet"),
    disk("compare", "training images", "/training/*.png"),
    disk("compare", "page", "/report.html"),
    *(Fault(f"read-only {case}", "a read-only folder of results", case, partial(read_only, "out"))
      for case in ("fit", "fit, 2 ranks", "stream", "predict", "predict, 2 ranks", "score", "compare")),
    *(Fault(f"read-only cache {case}", "a read-only cache", case, partial(read_only, "cache"))
      for case in ("fit", "fit, 2 ranks", "score", "compare")),
    Fault("shard fit", "a shard is gone", "fit", partial(lost_shard, "images.tar", 4)),
    Fault("shard fit no cache", "a shard is gone", "fit, no cache", partial(lost_shard, "images.tar", 25)),
    Fault("shard stream", "a shard is gone", "stream", partial(lost_shard, "shards/1.tar", 9)),
    Fault("slow fit", "slow renames", "fit, 2 ranks", slow_disk),
    Fault("slow predict", "slow renames", "predict, 2 ranks", slow_disk),
    *(Fault(f"clock {case}", "the clock goes back an hour", case, clock_back) for case in ("fit", "predict")),
    *(Fault(f"nan {case}", "NaN in step 4 of 6", case, broken) for case in ("fit", "fit, 2 ranks")),
]  # fmt: skip
