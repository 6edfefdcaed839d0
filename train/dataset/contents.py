"""What a data set holds, so that a run does not continue on changed data without a word."""

from collections.abc import Sequence

from data.captioned import Sample
from data.files import digest

Contents = dict[str, list[str]]


def contents_of(samples: Sequence[Sample], captions: Sequence[Sequence[str]]) -> Contents:
    """The id of each sample, digests of its image and captions, and its repeats if some have any."""
    contents = {
        "ids": [sample.id for sample in samples],
        "images": [digest(sample.image)[:16] for sample in samples],
        "captions": [digest(*texts)[:16] for texts in captions],
    }
    if any(sample.repeats != 1 for sample in samples):
        contents["repeats"] = [str(sample.repeats) for sample in samples]
    return contents


def check_same(before: Contents, now: Contents) -> None:
    """Raise ValueError that names the images and captions that changed since the checkpoint."""
    if before == now:
        return
    old, new = ({name: rest for name, *rest in zip(*each.values(), strict=True)} for each in (before, now))
    both = [name for name in new if name in old]
    changes = {
        "gone": [name for name in old if name not in new],
        "new": [name for name in new if name not in old],
        "with another image": [name for name in both if old[name][0] != new[name][0]],
        "with other captions": [name for name in both if old[name][1] != new[name][1]],
        "repeated another number of times": [
            name for name in both if (old[name][2:] or ["1"]) != (new[name][2:] or ["1"])
        ],
    }
    listed = [
        f"{len(names):,} {change} ({', '.join(map(repr, names[:3]))})"
        for change, names in changes.items()
        if names
    ]
    raise ValueError(
        f"the data changed since the checkpoint was written: {'; '.join(listed) or 'another order'}: restore "
        "the data, or choose another --out"
    )
