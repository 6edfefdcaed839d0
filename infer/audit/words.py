"""What an audit found, in plain words."""

import math
from collections.abc import Sequence
from typing import Any

from infer.audit.answer import Share
from infer.audit.difference import LEAST
from infer.audit.options import Audit
from infer.audit.remedy import Remedy
from infer.audit.selection import Selection
from infer.metrics.similarity import BLIND_SPOTS, CORRELATION
from infer.metrics.training_set import not_searched


def measured_by(options: Audit) -> str:
    """What decides, by its own name."""
    if options.sscd:
        return f"SSCD above {options.threshold:g}"
    return (
        f"{CORRELATION} above {options.threshold:g}, and {LEAST:.0%} of the places with detail repeated: "
        "pixels are compared, which is no copy detector"
    )


def headline(whole: Share, unit: str) -> str:
    """`12 of 100 captions return their training image (12%, 95% interval 7% to 20%).`"""
    what = "images return a training image" if unit == "image" else "captions return their training image"
    ends = f"{whole.share:.0%}, 95% interval {whole.low:.0%} to {whole.high:.0%}"
    return f"{whole.returned} of {whole.audited} {what} ({ends})."


def verdict(whole: Share, options: Audit) -> str:
    passed = whole.share <= options.fail_above
    return f"The audit {'passes' if passed else 'FAILS'}: at most {options.fail_above:.0%} may."


def advice(best: Remedy | None, whole: Share, options: Audit) -> str:
    """Which mitigation to use; empty where nothing was tried."""
    if not whole.returned or not options.mitigations:
        return ""
    if best is None:
        return f"None of {', '.join(options.mitigations)} helps."
    name, brings = best.mitigation, f"brings this to about {best.share:.0%}"
    if best.share > options.goal:
        return f"No mitigation that was tried reaches {options.goal:.0%}; {name} {brings}."
    if math.isnan(best.clip_score):
        return f"Use {name}: it {brings}."
    clip = f"CLIP {best.clip_score:.2f}, without mitigation {best.clip_score_without:.2f}"
    if best.loses_the_prompt:
        lost = f"BUT its images no longer fit their prompts ({clip}): look at them, and try others"
        return f"{name} {brings}, {lost}."
    return f"Use {name}: it {brings}, and keeps the images' fit to the prompts best ({clip})."


def facts_of(line: dict[str, Any], options: Audit) -> list[str]:
    """What is said of one caption's image."""
    times = f"{line['returning']} of {line['samples']} images"
    if not line["returning"]:
        facts = [f"not returned: the nearest of {line['samples']} images has {line['similarity']:.2f}"]
        if line["similarity"] > options.threshold:
            facts.append(
                f"alike in layout and colours, but only {line['repeated_part']:.0%} of the detail is repeated"
            )
        return facts
    near, others = line["others_as_near"], line["others"]
    facts = [f"returned by {times}; the nearest has a similarity of {line['similarity']:.2f}"]
    if not others:
        facts.append("how sure: there are no images of other captions to compare with")
    elif near:
        facts.append(
            f"DOUBTFUL: {near} of {others} images of other captions come as near to this training image: it "
            "resembles many, or stands in the training set more than once"
        )
    else:
        facts.append(f"sure: none of {others} images of other captions comes as near to it")
    if line["repeated_part"] is not None:
        facts.append(f"the image repeats {line['repeated_part']:.0%} of the places that have detail")
    if trigger := line["trigger"]:
        facts.append(
            f'triggered by "{trigger["phrase"]}": without it {trigger["returning_without"]} of '
            f"{trigger['samples']} images return it (similarity {trigger['similarity']:.2f} -> "
            f"{trigger['similarity_without']:.2f})"
        )
    elif line["phrases_tried"]:
        facts.append("no single phrase triggers it: without any one of them it is returned as often")
    return facts


def notes(
    options: Audit, whole: Share, selection: Selection, unmeasured: int, left_out: Sequence[str],
    doubtful: int,
) -> list[str]:  # fmt: skip
    """What the answer rests on."""
    said = [f"An image counts as returned by {measured_by(options)}."]
    if not options.sscd:
        said.append(f"{BLIND_SPOTS} Give it as --sscd disc_large, and it decides.")
    if selection.unit == "image":
        prompts = ", ".join(map(repr, options.prompt or [""]))
        said.append(f"{whole.audited} images of {prompts}, each compared with all training images.")
    else:
        said.append(
            f"{selection.asked:,} of {selection.of:,} captions, {options.samples_per_prompt} images of each; "
            "a caption returns its image if one of them is returned."
        )
    if doubtful:
        said.append(f"{doubtful} of those that are returned are doubtful, as is said beside them.")
    if unmeasured:
        said.append(
            f"{unmeasured} {selection.unit}s are left out: their images failed, cannot "
            "be read or have one colour."
        )
    if left_out:
        said.append(not_searched(left_out))
    if options.mitigations and whole.returned:
        said.append(
            "Mitigations are tried on captions that return their image, with the same noise: part of each "
            "fall is chance."
        )
    return said
