"""A guarded call of a mitigated stock pipeline: which inputs belong to which image, and what goes out."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from PIL.Image import Image
from torch import Generator, Tensor

from infer.denoising.guidance import Trace
from infer.index.attempts import attempt_seed
from infer.index.guard import Guard, Guarded

PER_PROMPT = (  # inputs with an entry for each prompt; a single text is for all
    "prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "prompt_embeds", "negative_prompt_embeds",
    "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
)  # fmt: skip


def call_guarded(pipe: Any, guard: Guard, arguments: dict[str, Any]) -> tuple[Any, Guarded]:
    """The pipeline's output with the images that the guard lets through, and what it says of them.

    The seeds of further attempts are drawn from the images' generators after their own draws. Images of other
    output types than PIL's are theirs, of 8 bits. ValueError for latents, which have no similarity.
    """
    if (kind := arguments.pop("output_type", None) or "pil") not in ("pil", "np", "pt"):
        raise ValueError(f"a guard checks images: output_type is pil, np or pt, not {kind!r}")
    as_tuple = not arguments.pop("return_dict", True)
    output = pipe.guided_call(**arguments, output_type="pil")
    flags = getattr(output, "nsfw_content_detected", None)
    given = arguments.get("generator")
    generators = given if isinstance(given, list) else [given] * len(output.images)
    seeds = [drawn_seed(generator) for generator in generators]
    per_prompt = arguments.get("num_images_per_prompt") or 1

    def again(rows: list[int], attempt: int) -> tuple[list[Image], Trace]:
        inputs = {name: rows_of(name, value, rows, per_prompt) for name, value in arguments.items()}
        own = [like(generators[row]).manual_seed(attempt_seed(seeds[row], attempt)) for row in rows]
        inputs |= {"generator": own, "num_images_per_prompt": 1, "latents": None}
        made = pipe.guided_call(**inputs, rules=guard.stronger or pipe.rules, output_type="pil")
        if flags:
            for row, flag in zip(rows, made.nsfw_content_detected, strict=True):
                flags[row] = flag
        return made.images, pipe.trace

    guarded, pipe.trace = guard.watch(output.images, pipe.trace, again)
    output.images = as_kind(pipe, guarded.images, kind)
    return tuple(getattr(output, field.name) for field in fields(output)) if as_tuple else output, guarded


def drawn_seed(generator: Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def like(generator: Generator | None) -> Generator:
    return Generator() if generator is None else Generator(generator.device)


def rows_of(name: str, value: Any, rows: Sequence[int], per_prompt: int) -> Any:
    """The entries of these images."""
    if name not in PER_PROMPT or value is None:
        return value
    if isinstance(value, str):
        return [value] * len(rows)
    entries = [row // per_prompt for row in rows]
    return value[entries] if isinstance(value, Tensor) else [value[entry] for entry in entries]


def as_kind(pipe: Any, images: list[Image], kind: str) -> Any:
    """PIL images as the pipeline's output of that type."""
    if kind == "pil":
        return images
    array = pipe.image_processor.pil_to_numpy(images)
    return array if kind == "np" else pipe.image_processor.numpy_to_pt(array)
