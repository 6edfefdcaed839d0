"""The result of an audit, as `audit.json` has it, and the images that its page shows."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from infer.audit import words
from infer.audit.answer import Answer
from infer.audit.phrases import Effect, trigger_of
from infer.audit.remedy import Remedy
from infer.audit.runs import Runs
from infer.audit.selection import Selection
from infer.predict.run_folder import save_image

FORMAT = 1  # of audit.json: raise it where a reader of the old one would go wrong
SHOWN, FEWEST = 50, 10  # images on the page: those returned, and where these are few, the nearest others


class Findings(NamedTuple):
    """What was done and measured.

    Attributes:
        selection: what was generated.
        answer: which captions return their image.
        effects: of phrases.
        remedies: mitigations that were tried.
        best: the one to use.
        command: that uses it.
        python: that puts it into a pipeline of diffusers.
    """

    selection: Selection
    answer: Answer
    effects: list[Effect]
    remedies: list[Remedy]
    best: Remedy | None
    command: str | None
    python: str | None


def finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def described(runs: Runs, found: Findings) -> list[dict[str, Any]]:
    """The lines of the page and of audit.json; their training images and maps are written."""
    out, training, answer = Path(runs.options.out), runs.training, found.answer
    tried = {effect.prompt_id for effect in found.effects}
    shown = answer.lines.head(max(FEWEST, min(SHOWN, answer.whole.returned))).to_dict("records")
    lines = []
    for number, (line, image, owner) in enumerate(zip(shown, answer.images, answer.owners, strict=False)):
        stem, sample = image.stem, training.images[owner]
        reference = sample.rgb(training.resolution)
        drawn, part = runs.repeated(image, owner)
        save_image(reference, out / "training" / f"{stem}.png")
        save_image(drawn, out / "maps" / f"{stem}.png")
        trigger = trigger_of(found.effects, line["prompt_id"])
        near, others = answer.controls[number] if line["returning"] else (None, None)
        key = line["prompt_id"], line["sample"]
        mitigated = found.best.images.get(key) if found.best else None
        names = ("prompt_id", "prompt", "sample", "similarity", "samples", "returning")
        lines.append({name: line[name] for name in names} | {
            "training_id": sample.id,
            "others_as_near": near,
            "others": others,
            "repeated_part": finite(part),
            "image": image.relative_to(out).as_posix(),
            "training_image": f"training/{stem}.png",
            "map": f"maps/{stem}.png",
            "mitigated_image": mitigated and mitigated.relative_to(out).as_posix(),
            "trigger": trigger and trigger._asdict(),
            "phrases_tried": line["prompt_id"] in tried and line["returning"] > 0,
        })  # fmt: skip
    return lines


def result_of(runs: Runs, found: Findings) -> dict[str, Any]:
    """The content of audit.json; images of the page are written."""
    options, selection, whole, best = runs.options, found.selection, found.answer.whole, found.best
    lines = described(runs, found)
    shares = {name: finite(value) if isinstance(value, float) else value
              for name, value in whole._asdict().items()}  # fmt: skip
    doubtful = sum(near > 0 for near, _ in found.answer.controls)
    unmeasured, left_out = selection.asked - whole.audited, runs.training.left_out()
    return {
        "format": FORMAT,
        "headline": words.headline(whole, selection.unit),
        "verdict": words.verdict(whole, options),
        "advice": words.advice(best, whole, options),
        "passed": whole.share <= options.fail_above,
        "unit": selection.unit,
        **shares,
        "of": selection.of,
        "unmeasured": unmeasured,
        "doubtful": doubtful,
        "samples_per_prompt": options.samples_per_prompt,
        "fail_above": options.fail_above,
        "goal": options.goal,
        "measure": "SSCD" if options.sscd else "pixels",
        "measured_by": options.measuring.measured_by(),
        "threshold": options.threshold,
        "model": options.model.identity(),
        "seed": options.seed,
        "training": options.training,
        "images": lines,
        "phrases": [effect._asdict() for effect in found.effects],
        "mitigations": [
            {"mitigation": r.mitigation, "preset": r.preset, "tried": r.left.audited,
             "returned": r.left.returned, "share": r.share, "clip_score": finite(r.clip_score),
             "clip_score_without": finite(r.clip_score_without), "nfe": finite(r.nfe)}
            for r in found.remedies
        ],
        "chosen": best and {"mitigation": best.mitigation, "preset": best.preset,
                            "reaches_goal": best.share <= options.goal, "command": found.command,
                            "python": found.python},
        "notes": words.notes(options, whole, selection, unmeasured, left_out, doubtful),
    }  # fmt: skip
