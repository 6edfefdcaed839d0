"""Which mitigation helps: each is tried on the captions that return their images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from infer.audit.answer import Share, by_caption, share_returned
from infer.audit.runs import Runs
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request

KEPT = 0.8  # of the CLIP cosine: below it images no longer show what the prompts say


class Remedy(NamedTuple):
    """A mitigation that was tried.

    Attributes:
        mitigation: its label.
        preset: what `--mitigation` takes.
        left: how many of the captions that were tried still return their image.
        share: of all audited captions, if the others that return their image do as those that were tried.
        clip_score: how well its images fit their prompts, mean cosine; NaN where that is not defined.
        clip_score_without: the same of the same prompts and noises without mitigation.
        nfe: UNet evaluations of an image, mean.
        images: by prompt id and sample.
    """

    mitigation: str
    preset: str
    left: Share
    share: float
    clip_score: float
    clip_score_without: float
    nfe: float
    images: Mapping[tuple[str, int], Path]

    @property
    def loses_the_prompt(self) -> bool:
        """Whether the fit to the prompts falls by more than a fifth."""
        return self.clip_score < KEPT * self.clip_score_without


def try_mitigation(
    runs: Runs, preset: str, label: str, rules: Sequence[GuidanceRule], requests: list[Request],
    plain: pd.DataFrame, whole: Share, keys: Sequence[str],
) -> Remedy:  # fmt: skip
    """Make the same images under a mitigation.

    Args:
        runs: makes and scores them.
        preset: of the mitigation.
        label: of the mitigation.
        rules: the mitigation.
        requests: of captions that return their images.
        plain: scored rows of the same images without mitigation.
        whole: the share of captions that return their image without mitigation.
        keys: columns that distinguish captions.
    """
    folder = runs.make(label, requests, label, rules)
    rows = runs.scored(folder)
    lines = by_caption(rows, keys)
    left = share_returned(lines, plain.groupby(list(keys)).ngroups)
    clip, clip_without = rows["clip_score"].astype(float).mean(), plain["clip_score"].astype(float).mean()
    images = {(row.prompt_id, row.sample): folder / row.image for row in rows.itertuples()}
    share, nfe = whole.share * left.share, float(rows["nfe"].mean())
    return Remedy(label, preset, left, share, float(clip), float(clip_without), nfe, images)


def best_of(remedies: Sequence[Remedy], goal: float) -> Remedy | None:
    """The best fit to the prompts among those with no larger share than the goal, else the smallest share.

    None where nothing was tried, or nothing returns fewer images.
    """
    helping = [remedy for remedy in remedies if remedy.left.share < 1]
    enough = [remedy for remedy in helping if remedy.share <= goal]
    if enough:
        return max(enough, key=lambda r: (-math.inf if math.isnan(r.clip_score) else r.clip_score, -r.share))
    return min(helping, key=lambda remedy: remedy.share, default=None)
