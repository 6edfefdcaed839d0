"""`python -m infer audit`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.arguments import options_of, with_prompts
from data.batches import spread
from infer.audit import use, words
from infer.audit.answer import Answer, by_caption, others_as_near, share_returned, training_index
from infer.audit.options import Audit
from infer.audit.page import write_result
from infer.audit.phrases import Effect, effects, worst_captions
from infer.audit.remedy import Remedy, best_of, try_mitigation
from infer.audit.result import Findings, result_of
from infer.audit.runs import MakeTrainer, Runs, read_rgb
from infer.audit.selection import Selection, select
from infer.denoising.hooks import GuidanceRule
from infer.metrics.similarity import embed_all
from infer.predict.run_folder import KEY

FAILED = 2  # exit code: more captions return their image than may
Labelled = tuple[str, list[GuidanceRule]]
Load = Callable[[str], Labelled]
Mitigations = dict[str, Labelled]  # by preset


def audit(args: list[str], load: Load, trainer: MakeTrainer) -> None:
    """Say which training images a model returns, and what helps; the exit code is 2 if it returns many."""
    [options] = options_of([Audit], audit, with_prompts(args))
    mitigations = {preset: load(preset) for preset in options.mitigations}
    runs = Runs(options, trainer)
    images = options.measuring.training_images()
    selection = select(options, runs.module, images)
    for _, rules in mitigations.values():  # what cannot work: before hours of images
        runs.module.check(rules, selection.requests)
    runs.embed(images)

    answer = answered(runs, selection)
    found: list[Effect] = []
    if worst := worst_captions(answer, selection):
        say(2, f"phrases of the {len(worst)} captions that return their image most often")
        found = effects(runs, worst)
    remedies = try_mitigations(runs, selection, answer, mitigations)
    best = best_of(remedies, options.goal)
    command = python = None
    if best:
        command, rules = use.command(options.model, best.preset), mitigations[best.preset][1]
        python = use.snippet(options.model, rules)
    result = result_of(runs, Findings(selection, answer, found, remedies, best, command, python))
    finish(result, write_result(options, result))


def answered(runs: Runs, selection: Selection) -> Answer:
    """Make the images, measure and say the answer; ValueError where no image can be measured."""
    options, what = runs.options, "images"
    if selection.unit == "caption":
        what = f"captions of {selection.of}, {options.samples_per_prompt} images of each"
    say(1, f"{selection.asked} {what}")
    folder = runs.make("captions", selection.requests, "none", [])
    rows = runs.scored(folder)
    lines = by_caption(rows, selection.keys)
    if lines.empty:
        raise ValueError("no image can be measured: each failed, cannot be read or has one colour")
    whole = share_returned(lines, len(lines))
    print(words.headline(whole, selection.unit), flush=True)
    descriptor, embeddings = runs.training.measures[options.measure]
    images = embed_all((read_rgb(folder / name) for name in lines["image"]), descriptor)
    owners = training_index(runs.training, options.measure, lines, images)
    controls = others_as_near(images, owners, embeddings, options.threshold, whole.returned)
    return Answer(folder, rows, lines, whole, owners, controls)


def try_mitigations(
    runs: Runs, selection: Selection, answer: Answer, mitigations: Mitigations
) -> list[Remedy]:
    """Try each mitigation on some of the captions that return their image."""
    if answer.returned.empty:
        return []
    some = spread([*answer.returned.index], selection.plan.tried)
    plain = answer.rows.merge(answer.returned.loc[some, selection.keys])
    keys = set(plain[KEY].itertuples(index=False, name=None))
    requests = [request for request in selection.requests if request[:2] in keys]
    remedies = []
    for preset, (label, rules) in mitigations.items():
        say(3, f"{label}: {len(requests)} images of {len(some)} {selection.unit}s")
        remedies.append(
            try_mitigation(runs, preset, label, rules, requests, plain, answer.whole, selection.keys)
        )
    return remedies


def say(step: int, text: str) -> None:
    print(f"{step} of 3: {text}", flush=True)


def finish(result: dict[str, Any], page: Path) -> None:
    """Print the answer; SystemExit with 2 where the audit fails."""
    print(result["headline"], result["verdict"])
    if result["advice"]:
        print(result["advice"])
    if chosen := result["chosen"]:
        print("\n" + "\n\n".join(filter(None, [chosen["command"], chosen["python"]])) + "\n")
    print(f"page: {page.resolve()}, numbers: {page.with_name('audit.json')}")
    if not result["passed"]:
        raise SystemExit(FAILED)
