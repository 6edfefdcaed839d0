"""`python -m infer audit`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data.arguments import options_of, with_prompts
from data.captioned import CaptionedImages
from data.prompts import spread
from infer.audit import use, words
from infer.audit.answer import by_caption, others_as_near, share_of, training_index
from infer.audit.budget import Plan, plan_of
from infer.audit.options import Audit
from infer.audit.page import write_result
from infer.audit.remedy import Remedy, best_of, try_mitigation
from infer.audit.result import Findings, result_of
from infer.audit.runs import MakeTrainer, Runs, opened
from infer.audit.trigger import Effect, Worst, effects
from infer.denoising.hooks import GuidanceRule
from infer.denoising.requests import Request, requests_for
from infer.metrics.similarity import embed_all

FAILED = 2  # exit code: more captions return their image than may
Load = Callable[[str], tuple[str, list[GuidanceRule]]]


def audit(
    args: list[str], load: Load, trainer: MakeTrainer, in_stock: Callable[[Sequence[GuidanceRule]], bool]
) -> None:
    """Say which training images a model returns, and what helps; the exit code is 2 if it returns many."""
    [options] = options_of([Audit], audit, with_prompts(args))
    mitigations = {preset: load(preset) for preset in options.mitigations}
    runs = Runs(options, trainer)
    samples = options.measuring.training_images()
    requests, of, plan, by_image = chosen_requests(options, runs, samples)
    for _, rules in mitigations.values():  # what cannot work: before hours of images
        runs.module.check(rules, requests)
    runs.embed(samples)
    keys = ["prompt_id", "sample"] if by_image else ["prompt_id"]

    asked, unit = len({tuple(getattr(r, key) for key in keys) for r in requests}), "images"
    if not by_image:
        unit = f"captions of {of}, {options.samples_per_prompt} images of each"
    say(1, f"{asked} {unit}")
    folder = runs.make("captions", requests, "none", [])
    rows = runs.scored(folder)
    lines = by_caption(rows, options.measure, keys)
    if lines.empty:
        raise ValueError("no image can be measured: each failed, cannot be read or has one colour")
    whole = share_of(int((lines["returning"] > 0).sum()), len(lines))
    print(words.headline(whole, by_image), flush=True)
    descriptor, embeddings = runs.training.measures[options.measure]
    images = embed_all(opened(folder / name for name in lines["image"]), descriptor)
    owners = training_index(runs.training, options.measure, lines, images)
    returned = lines[lines["returning"] > 0]
    controls = others_as_near(images, owners, embeddings, options.threshold, len(returned))

    found: list[Effect] = []
    if plan.phrases and len(returned):
        worst = worst_captions(returned.head(plan.phrases), owners, rows, requests, folder, by_image)
        say(2, f"phrases of the {len(worst)} captions that come nearest")
        found = effects(runs, worst)
    remedies: list[Remedy] = []
    if mitigations and len(returned):
        tried = set(map(tuple, spread(returned[keys].values.tolist(), plan.tried)))
        some = [r for r in requests if tuple(getattr(r, key) for key in keys) in tried]
        plain = rows[[key in tried for key in zip(*(rows[key] for key in keys), strict=True)]]
        for preset, (label, rules) in mitigations.items():
            say(3, f"{label}: {len(some)} images of {len(tried)} {'images' if by_image else 'captions'}")
            remedies.append(try_mitigation(runs, preset, label, rules, some, plain, whole, keys))
    best = best_of(remedies, options.goal)
    rules = mitigations[best.preset][1] if best else []
    result = result_of(
        runs,
        Findings(
            whole, lines, owners, controls, [folder / name for name in lines["image"]], of, asked, found,
            remedies, best, best and use.command(options.model, best.preset),
            use.snippet(options.model, rules) if rules and in_stock(rules) else None,
        ),
        by_image,
    )  # fmt: skip
    page = write_result(options, result)
    finish(result, page)


def say(step: int, text: str) -> None:
    print(f"{step} of 3: {text}", flush=True)


def chosen_requests(
    options: Audit, runs: Runs, samples: CaptionedImages
) -> tuple[list[Request], int, Plan, bool]:
    """The images to generate, how many captions there are, the plan, and whether images count one by one."""
    prompts = options.prompts(samples)
    by_image = options.prompt is not None or not prompts[0].text
    first = requests_for(prompts[: options.batch_size], options.batch_size, options.seed)
    plan = plan_of(options, runs.module, first)
    if by_image:
        count = plan.captions * (options.samples_per_prompt if options.minutes else 1)
        each = -(-count // len(prompts))
        return requests_for(spread(prompts, count), each, options.seed), len(prompts), plan, True
    chosen = spread(prompts, plan.captions)
    return requests_for(chosen, options.samples_per_prompt, options.seed), len(prompts), plan, False


def worst_captions(
    lines: pd.DataFrame, owners: list[int], rows: pd.DataFrame, requests: list[Request], folder: Path,
    by_image: bool,
) -> list[Worst]:  # fmt: skip
    """The captions of these lines, the first of all lines, with their images that have a similarity."""
    usable = rows[rows["failed_step"].isna() & ~rows["unreadable"]].set_index(["prompt_id", "sample"])
    worst: dict[str, Worst] = {}
    for owner, line in zip(owners, lines.itertuples(), strict=False):
        own = [r for r in requests if r.prompt_id == line.prompt_id and r[:2] in usable.index]
        if by_image:
            own = [r for r in own if r.sample == line.sample]
        paths = [folder / usable.loc[request[:2], "image"] for request in own]
        worst.setdefault(line.prompt_id, Worst(own, paths, owner))
    return list(worst.values())


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
