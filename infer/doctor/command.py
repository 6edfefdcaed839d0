"""`python -m infer doctor`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from data.arguments import options_of
from data.files import redacted
from infer.doctor import checks, machine

LEAST = 1 << 30  # bytes free in each folder


@dataclass(kw_only=True)
class Doctor:
    """What to look at.

    Args:
        pipeline: the model that you mean to use: diffusers folder, Hub id or .safetensors file.
        revision: commit, tag or branch of the pipeline on the Hub.
        sources: the training data that you mean to use, as `train fit --data.sources` takes it.
        out: where runs are written.
    """

    pipeline: str | None = None
    revision: str | None = None
    sources: list[str] = field(default_factory=list)
    out: str = "outputs"

    def findings(self) -> Iterator[checks.Finding]:
        """Every check in turn; those of model and data where they are given."""
        yield from machine.packages()
        yield from machine.devices()
        if self.pipeline:
            yield from checks.model(self.pipeline, self.revision)
        yield from chain.from_iterable(map(checks.source, self.sources))
        needed = max(LEAST, checks.checkpoint_bytes(self.pipeline))
        yield from checks.disk("disk", Path(self.out), needed)
        for name, folder in checks.caches(self.pipeline).items():
            yield from checks.disk(name, folder, LEAST)
        yield from machine.wandb()
        yield from machine.slurm()


def doctor(args: list[str]) -> None:
    """Say whether this machine can run what you mean to run, a line for each thing; exit code 1 if not."""
    [options] = options_of([Doctor], doctor, args)
    broken = []
    for found in options.findings():
        state = "BROKEN" if found.broken else "ok"
        print(redacted(f"{state:<6}  {found.subject:<9}  {found.text}"), flush=True)
        broken += [found.subject] if found.broken else []
    if broken:
        raise ValueError(f"to be mended: {', '.join(dict.fromkeys(broken))}")
