"""Mitigations in stock pipelines: SD against our own loop, SDXL against one written out; and the bench."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FlowMatchEulerDiscreteScheduler, KDPM2DiscreteScheduler, StableDiffusionImg2ImgPipeline
from torch import Tensor

from callbacks.detour import Detour
from callbacks.dynamic_transition import DynamicTransition
from callbacks.mitigation import NoMitigation
from callbacks.static_transition import StaticTransition
from callbacks.two_pass_transition import TwoPassTransition
from data.pipeline import load_pipeline
from infer.denoise import Denoised
from infer.guidance import Rows, Trace
from infer.images import make_images
from infer.rules import GuidanceRule, Request
from infer.schedulers import make_scheduler
from infer.stock import mitigate, picked
from tests.bench import denoise as bench
from tests.conftest import CAPTIONS, random_pipeline
from tests.families import classic_sdxl
from tests.family import quiet

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEDULERS = ["ddim", "dpm", "euler", "pndm", "heun", "euler_ancestral"]
SCALES = [7.5, 1.0, 0.0, -2.0]
CPU = torch.device("cpu")
RULES: dict[str, Callable[[float], list[GuidanceRule]]] = {  # by name, made with a gate for half of the batch
    "none": lambda gate: [],
    "static": lambda gate: [StaticTransition(500)],
    "opposite": lambda gate: [StaticTransition(650, -3.0)],
    "dynamic": lambda gate: [DynamicTransition(-1.0, watch="model_output")],
    "gate": lambda gate: [StaticTransition(300, 0.5, gate=gate)],
    "ramp": lambda gate: [StaticTransition(700, 0.5, ramp_timesteps=300)],
}
CASES = [("ddim", rule, scale) for rule in RULES for scale in SCALES] + [
    (scheduler, rule, 7.5) for scheduler in SCHEDULERS[1:] for rule in RULES
]
CASES.remove(("ddim", "static", 0.0))  # would do nothing: refused
STEPS = {"dynamic": 8}  # to have minima; the others have their transitions in 4


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {"sd": quiet(random_pipeline()), "sdxl": classic_sdxl()}


@pytest.fixture
def sd(built: dict[str, Any]) -> Any:
    return with_scheduler(built["sd"], "ddim")


@pytest.fixture
def sdxl(built: dict[str, Any]) -> Any:
    return with_scheduler(built["sdxl"], "ddim")


def with_scheduler(pipe: Any, name: str) -> Any:
    pipe.scheduler = make_scheduler(pipe.scheduler, name)
    return pipe


def seeded(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(pipe: Any, prompts: Any = tuple(CAPTIONS[:2]), seeds: list[int] | None = None, **options) -> Tensor:
    """The final latents."""
    prompts = list(prompts) if isinstance(prompts, tuple) else prompts
    size = 1 if isinstance(prompts, str) else len(prompts or options["prompt_embeds"])
    seeds = list(range(size * options.get("num_images_per_prompt", 1))) if seeds is None else seeds
    options = {"num_inference_steps": 6, "height": 16, "width": 16, "output_type": "latent"} | options
    return pipe(prompts, generator=seeded(seeds), **options).images


def close(a: Tensor, b: Tensor) -> bool:
    """As near as sums over batches of other sizes come; latents go up to 30."""
    return torch.allclose(a, b, rtol=1e-6, atol=1e-5)


def requests(prompts: list[str], negative: str | None = None) -> list[Request]:
    return [Request(f"s{n}", 0, prompt, n, negative) for n, prompt in enumerate(prompts)]


def ours(pipe: Any, rules: list[GuidanceRule], scale: float, steps: int, asked: list[Request]) -> Denoised:
    return make_images(pipe, CPU, asked, 16, scale, steps, rules=rules)[1]


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """The rows of each evaluation that is really made within the block."""
    calls, forward = [], unet.forward

    def counting(sample: Tensor, *args: Any, **options: Any) -> Any:
        calls.append(len(sample))
        return forward(sample, *args, **options)

    unet.forward = counting
    try:
        yield calls
    finally:
        del unet.forward


def gate_between(trace: Trace) -> float:
    """A gate that one of two samples stays below."""
    first, second = trace.difference_rms[:, 0].tolist()
    assert abs(first - second) > 1e-3 * first
    return (first + second) / 2


def assert_same_trace(trace: Trace, expected: Trace) -> None:
    for name in Trace.__dataclass_fields__:
        values = getattr(trace, name), getattr(expected, name)
        assert (values[0] is None) == (values[1] is None), name
        if values[0] is not None:
            assert torch.allclose(*values, rtol=1e-4, atol=1e-5, equal_nan=True), name


# Stable Diffusion: as in our own loop


@pytest.mark.parametrize("scheduler, rule, scale", CASES)
def test_sd_is_our_own_loop(sd: Any, scheduler: str, rule: str, scale: float) -> None:
    """Latents, evaluations, and all that was seen on the way."""
    pipe, steps = with_scheduler(sd, scheduler), STEPS.get(rule, 4)
    asked = requests(CAPTIONS[:2])
    gate = gate_between(ours(pipe, [], 7.5, steps, asked)) if rule == "gate" else 0.0
    expected = ours(pipe, RULES[rule](gate), scale, steps, asked)
    twin = mitigate(pipe, *RULES[rule](gate))
    with counted(pipe.unet) as calls:
        latents = run(twin, guidance_scale=scale, num_inference_steps=steps)
    assert latents.isfinite().all()
    assert close(latents, expected.latents)
    assert_same_trace(twin.trace, expected)
    assert sum(calls) == twin.trace.nfe.sum()


def test_sd_images_are_those_of_predict(sd: Any) -> None:
    """To the pixel; with and without return_dict."""
    rule = StaticTransition(500)
    images, _ = make_images(sd, CPU, requests(CAPTIONS[:2]), 16, 7.5, 6, rules=[rule])
    made = run(mitigate(sd, rule), output_type="pil")
    assert np.array_equal(np.stack(images), np.stack(made))
    made = mitigate(sd, rule)(
        CAPTIONS[0], num_inference_steps=6, generator=torch.Generator().manual_seed(0), return_dict=False
    )
    assert np.array_equal(images[0], made[0][0])


# Stable Diffusion XL: as in a loop written out


class Written:
    """Each rule as a formula: (index, timestep, u, c) -> s of each row."""

    def __init__(self, rule: str, scale: float, gate: float = 0.0):
        self.rule, self.scale, self.gate, self.curves = rule, scale, gate, []
        self.timesteps: list[float] = []
        self.since: list[float | None] = [None, None]

    def __call__(self, index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        full = self.scale
        d = (c - u).pow(2).mean((1, 2, 3)).sqrt()
        if index == 0:
            self.first = d
        if self.rule == "static":
            return torch.full_like(d, 0.0 if t > 500 else full)
        if self.rule == "opposite":
            return torch.full_like(d, -3.0 if t > 650 else full)
        if self.rule == "gate":
            return torch.where((self.first < self.gate) | torch.tensor(t <= 300), full, 0.5)
        if self.rule == "ramp":
            return torch.full_like(d, 0.5 + (full - 0.5) * min(1.0, max(0.0, (700 - t) / 300)))
        if self.rule == "dynamic":
            if t not in self.timesteps[-1:]:  # solvers evaluate some twice
                self.timesteps.append(t)
                self.curves.append(d.tolist())
                for row, curve in enumerate(zip(*self.curves, strict=True)):
                    before, middle, now = curve[-3:] if len(curve) > 2 else (0, 0, 0)
                    if self.since[row] is None and before > middle and now > middle:
                        self.since[row] = t
            return torch.tensor([-1.0 if since is None else full for since in self.since])
        return torch.full_like(d, full)


@torch.no_grad()
def by_hand(
    pipe: Any,
    prompts: list[str],
    steps: int,
    scale: Callable[[int, float, Tensor, Tensor], Tensor],
    negative: str | None = None,
    per_prompt: int = 1,
) -> Tensor:
    """The final latents of SDXL where all rows get both predictions at each step, mixed by `scale`."""
    c_text, u_text, c_pooled, u_pooled = pipe.encode_prompt(
        prompts, num_images_per_prompt=per_prompt, negative_prompt=negative and [negative] * len(prompts)
    )
    count, scheduler = len(c_text), pipe.scheduler
    generators, ids = seeded(list(range(count))), torch.tensor([[16.0, 16, 0, 0, 16, 16]] * count)
    scheduler.set_timesteps(steps)
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=generator) for generator in generators])
    latents = noise * scheduler.init_noise_sigma
    draws = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    texts = torch.cat([u_text, c_text])
    more = {"text_embeds": torch.cat([u_pooled, c_pooled]), "time_ids": torch.cat([ids, ids])}
    for index, t in enumerate(scheduler.timesteps):
        given = scheduler.scale_model_input(torch.cat([latents, latents]), t)
        u, c = pipe.unet(given, t, encoder_hidden_states=texts, added_cond_kwargs=more).sample.chunk(2)
        mixed = u + scale(index, float(t), u, c).view(-1, 1, 1, 1) * (c - u)
        latents = scheduler.step(mixed, t, latents, **draws).prev_sample
    return latents


@pytest.mark.parametrize("scheduler, rule, scale", CASES)
def test_sdxl_is_a_loop_written_out(sdxl: Any, scheduler: str, rule: str, scale: float) -> None:
    """Its UNet has more inputs; its negative embeddings are zeros where no negative prompt is given."""
    pipe, steps, gate = with_scheduler(sdxl, scheduler), STEPS.get(rule, 4), 0.0
    if rule == "gate":
        plain = mitigate(pipe)
        run(plain, num_inference_steps=steps)
        gate = gate_between(plain.trace)
    written = Written(rule, scale, gate)
    expected = by_hand(pipe, CAPTIONS[:2], steps, written)
    twin = mitigate(pipe, *RULES[rule](gate))
    with counted(pipe.unet) as calls:
        latents = run(twin, guidance_scale=scale, num_inference_steps=steps)
    assert latents.isfinite().all()
    assert close(latents, expected)
    assert sum(calls) == twin.trace.nfe.sum()
    if rule == "dynamic":
        found = [None if np.isnan(t) else t for t in twin.trace.transition_timestep.tolist()]
        assert found == written.since and found != [None, None]


# Batches, negative prompts, embeddings, callbacks


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize("kind, scheduler", [("dynamic", "ddim"), ("gate", "euler_ancestral")])
def test_each_sample_decides_for_itself(built: dict[str, Any], model: str, scheduler: str, kind: str) -> None:
    """A batch is its samples alone: latents, transitions and evaluations; they differ within it."""
    pipe, prompts, steps = with_scheduler(built[model], scheduler), CAPTIONS[:4], 10
    if kind == "gate":
        plain = mitigate(pipe)
        run(plain, tuple(prompts), num_inference_steps=steps)
        below, above = plain.trace.difference_rms[:, 0].sort().values[1:3].tolist()
        rule: GuidanceRule = StaticTransition(500, gate=(below + above) / 2)
    else:
        rule = DynamicTransition(0.0, watch="model_output")
    twin = mitigate(pipe, rule)
    with counted(pipe.unet) as calls:
        together = run(twin, tuple(prompts), num_inference_steps=steps, guidance_scale=5.0)
    trace = twin.trace
    transitions = trace.transition_timestep.nan_to_num(-1)
    assert len(transitions.unique()) > 1
    assert sum(calls) == trace.nfe.sum()
    for row, prompt in enumerate(prompts):
        with counted(pipe.unet) as calls:
            alone = run(twin, (prompt,), [row], num_inference_steps=steps, guidance_scale=5.0)
        assert torch.allclose(alone[0], together[row], atol=1e-4)
        assert twin.trace.nfe.tolist() == [sum(calls)] == [trace.nfe[row]]
        assert twin.trace.transition_timestep.nan_to_num(-1).tolist() == [transitions[row]]
    if kind == "gate":
        assert sorted(trace.nfe.tolist()) == [2 + 4 + 5 * 2] * 2 + [10 * 2] * 2


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_many_images_of_each_prompt(built: dict[str, Any], model: str) -> None:
    """In the order of the prompts, each with a generator of its own."""
    pipe, rule = with_scheduler(built[model], "ddim"), StaticTransition(500, gate=1e-6)
    twin = mitigate(pipe, rule)
    many = run(twin, num_images_per_prompt=3)
    assert len(many) == 6 and twin.trace.nfe.shape == (6,)
    assert close(many, run(twin, tuple(prompt for prompt in CAPTIONS[:2] for _ in range(3))))
    if model == "sdxl":
        assert close(many, by_hand(pipe, CAPTIONS[:2], 6, Written("static", 5.0), per_prompt=3))


def test_sd_negative_prompts(sd: Any) -> None:
    """Of each prompt, or the run's."""
    rule, negatives = StaticTransition(500), ["old map", "sun"]
    asked = [Request(f"s{n}", 0, CAPTIONS[n], n, negatives[n]) for n in range(2)]
    made = run(mitigate(sd, rule), negative_prompt=negatives)
    assert close(made, ours(sd, [rule], 7.5, 6, asked).latents)
    made = run(mitigate(sd, rule), (CAPTIONS[0],), negative_prompt=["sun"])
    _, alike = make_images(sd, CPU, requests(CAPTIONS[:1]), 16, 7.5, 6, "sun", [rule])
    assert close(made, alike.latents)
    assert not torch.allclose(made, run(mitigate(sd, rule), (CAPTIONS[0],)), atol=1e-3)


def test_sdxl_negative_prompt(sdxl: Any) -> None:
    made = run(mitigate(sdxl, StaticTransition(500)), negative_prompt="old map", guidance_scale=7.5)
    assert close(made, by_hand(sdxl, CAPTIONS[:2], 6, Written("static", 7.5), "old map"))
    assert not torch.allclose(made, by_hand(sdxl, CAPTIONS[:2], 6, Written("static", 7.5)), atol=1e-3)


@pytest.mark.parametrize("scale", [7.5, 0.0])
def test_embeddings_in_place_of_prompts(built: dict[str, Any], scale: float) -> None:
    """Stock pipelines want no negative ones below a scale of 1: the twin makes those of the empty prompt."""
    rule = StaticTransition(500, -1.0)
    pipe = with_scheduler(built["sd"], "ddim")
    conditional, unconditional = pipe.encode_prompt(CAPTIONS[:2], CPU, 1, True)
    twin, expected = mitigate(pipe, rule), run(mitigate(pipe, rule), guidance_scale=scale)
    both = {"prompt_embeds": conditional, "negative_prompt_embeds": unconditional}
    assert close(run(twin, None, guidance_scale=scale, **both), expected)
    assert close(run(twin, None, guidance_scale=scale, prompt_embeds=conditional), expected)
    pipe = with_scheduler(built["sdxl"], "ddim")
    names = [
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ]
    given = dict(zip(names, pipe.encode_prompt(CAPTIONS[:2]), strict=True))
    twin, expected = mitigate(pipe, rule), run(mitigate(pipe, rule), guidance_scale=scale)
    assert close(run(twin, None, guidance_scale=scale, **given), expected)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_callbacks_see_and_steer_each_step(built: dict[str, Any], model: str) -> None:
    """The latents that they see are the true ones; what they change counts, a scale at the next step."""
    pipe = with_scheduler(built[model], "dpm")
    seen: list[Tensor] = []

    def look(twin: Any, index: int, t: Tensor, state: dict) -> dict:
        seen.append(state["latents"])
        return state

    twin = mitigate(pipe, StaticTransition(500))
    last = run(twin, callback_on_step_end=look)
    assert len(seen) == 6 and torch.equal(seen[-1], last)

    def steer(twin: Any, index: int, t: Tensor, state: dict) -> dict:
        twin._guidance_scale = 0.0 if index == 2 else twin._guidance_scale
        return {"latents": state["latents"] * 0.5} if index == 4 else state

    twin = mitigate(pipe)
    made = run(twin, callback_on_step_end=steer, guidance_scale=3.0)
    assert twin.trace.guidance_scale[0].tolist() == [3, 3, 3, 0, 0, 0]
    assert twin.trace.nfe.tolist() == [9, 9]
    assert not torch.allclose(made, run(twin, guidance_scale=3.0), atol=1e-2)


def test_sdxl_up_to_a_refiner(sdxl: Any) -> None:
    """`denoising_end`: the steps that are not taken are not in the trace."""
    twin = mitigate(sdxl, StaticTransition(500))
    run(twin, num_inference_steps=10, denoising_end=0.7)
    assert twin.trace.timesteps[0].tolist() == [901, 801, 701, 601, 501, 401, 301]
    assert twin.trace.guidance_scale[0].tolist() == [0, 0, 0, 0, 0, 5, 5]


def test_every_input_of_the_unet_is_cut_to_the_rows() -> None:
    """However deep it lies, as with IP adapters; what is no batch stays."""
    doubled = torch.arange(8.0).view(8, 1)  # four unconditional, four conditional
    rows = Rows.select(torch.tensor([1, 0, 1, 0]).bool(), torch.tensor([1, 1, 0, 0]).bool(), CPU)
    expected = [[0.0], [2.0], [4.0], [5.0]]
    given = {
        "image_embeds": [doubled, doubled],
        "scale": 0.5,
        "t": torch.tensor(8.0),
        "other": torch.ones(3),
        "no": None,
    }
    found = picked(given, rows, 8)
    assert [x.tolist() for x in found["image_embeds"]] == [expected, expected]
    assert isinstance(found["image_embeds"], list) and isinstance(picked((doubled,), rows, 8), tuple)
    assert found["scale"] == 0.5 and found["t"] == 8 and len(found["other"]) == 3 and found["no"] is None


# The original pipeline


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_the_pipeline_itself_stays_as_it_is(built: dict[str, Any], model: str) -> None:
    pipe = with_scheduler(built[model], "ddim")
    kind, before = type(pipe), run(pipe)
    twin = mitigate(pipe, StaticTransition(500))
    mitigated = run(twin)
    assert type(pipe) is kind and not hasattr(pipe, "rules") and not hasattr(pipe, "trace")
    assert "forward" not in vars(pipe.unet)
    assert pipe.do_classifier_free_guidance and not kind.do_classifier_free_guidance.fget(
        with_scale(pipe, 1.0)
    )
    assert torch.equal(run(pipe), before)
    assert torch.equal(run(twin), mitigated) and not torch.allclose(mitigated, before, atol=1e-2)
    assert isinstance(twin, kind) and type(twin).__name__ == kind.__name__
    assert all(twin.components[name] is part for name, part in pipe.components.items())


def with_scale(pipe: Any, scale: float) -> Any:
    pipe._guidance_scale = scale
    return pipe


def test_twins_share_the_weights_and_may_have_a_scheduler_of_their_own(sd: Any) -> None:
    """A change of the weights is seen by both; another scheduler of the twin's is not."""
    twin, before = mitigate(sd), run(sd)
    assert close(run(twin, guidance_scale=7.5), before)
    bias = sd.unet.conv_out.bias
    with torch.no_grad():
        bias += 0.1
    changed = run(sd)
    assert close(run(twin), changed) and not torch.allclose(changed, before, atol=1e-2)
    with torch.no_grad():
        bias -= 0.1
    twin.scheduler = make_scheduler(sd.scheduler, "euler")
    run(twin)
    assert type(sd.scheduler).__name__ == "DDIMScheduler"
    assert torch.allclose(run(sd), before, atol=1e-4)


def test_a_twin_saves_as_the_pipeline_that_it_is(sd: Any, tmp_path: Path) -> None:
    mitigate(sd, StaticTransition(500)).save_pretrained(tmp_path)
    assert torch.equal(run(quiet(type(sd).from_pretrained(tmp_path, safety_checker=None))), run(sd))


def test_a_mitigated_pipeline_takes_other_rules(sd: Any) -> None:
    """In place of those that it had."""
    again = mitigate(mitigate(sd, StaticTransition(650, -3.0)), StaticTransition(500))
    assert torch.equal(run(again), run(mitigate(sd, StaticTransition(500))))


class Failure(BaseException):
    """Not even an Exception: as KeyboardInterrupt."""


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("where", ["callback", "unet", "rule", "before"])
def test_an_exception_leaves_nothing_behind(
    sd: Any, monkeypatch: pytest.MonkeyPatch, hooked: bool, where: str
) -> None:
    """The UNet is as it was, with accelerate's hook or without, and the twin works."""
    if hooked:
        add_hook_to_module(sd.unet, ModelHook())
    try:
        forward, twin = vars(sd.unet).get("forward"), mitigate(sd, StaticTransition(500))
        expected = run(twin)
        fail = StaticTransition(999) if where == "rule" else StaticTransition(500)
        broken = mitigate(sd, fail)

        def raising(*args: Any, **options: Any) -> Any:
            raise Failure

        with monkeypatch.context() as patch, pytest.raises((Failure, ValueError)):
            if where == "unet":
                patch.setattr(sd.unet.conv_out, "forward", raising)
            if where == "before":
                patch.setattr(sd.text_encoder, "forward", raising)
            run(broken, callback_on_step_end=raising if where == "callback" else None)
        assert vars(sd.unet).get("forward") is forward
        assert torch.equal(run(twin), expected)
        assert torch.equal(run(mitigate(sd, StaticTransition(500))), expected)
    finally:
        if hooked:
            remove_hook_from_module(sd.unet)
            del sd.unet.forward


def test_hooks_of_accelerate_stay_and_work(sd: Any) -> None:
    """They are how diffusers offloads."""
    expected, rows = run(mitigate(sd, StaticTransition(500))), []

    class Look(ModelHook):
        def pre_forward(self, module: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
            rows.append(len(sample))
            return (sample, *args), options

    add_hook_to_module(sd.unet, Look())
    try:
        assert torch.equal(run(mitigate(sd, StaticTransition(500))), expected)
        assert rows == [2, 2, 4, 4, 4, 4]
    finally:
        remove_hook_from_module(sd.unet)
        del sd.unet.forward


def test_a_compiled_unet_is_mitigated_too(sd: Any) -> None:
    rule = StaticTransition(500, -2.0)  # every row at each step: one shape to compile
    expected, twin = run(mitigate(sd, rule), num_inference_steps=2), mitigate(sd, rule)
    twin.unet = torch.compile(sd.unet, backend="eager")
    assert close(run(twin, num_inference_steps=2), expected)
    assert twin.trace.guidance_scale[0].tolist() == [-2.0, 7.5]
    assert "forward" not in vars(sd.unet)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_what_a_scale_means(built: dict[str, Any], model: str) -> None:
    """Stock pipelines take 0 and -2 for 1. The twin at 1 is that; at 0 and -2 it is what it says."""
    pipe = with_scheduler(built[model], "ddim")
    stock = {scale: run(pipe, guidance_scale=scale) for scale in (1.0, 0.0, -2.0)}
    assert torch.equal(stock[0.0], stock[1.0]) and torch.equal(stock[-2.0], stock[1.0])
    twin = mitigate(pipe)
    made = {scale: run(twin, guidance_scale=scale) for scale in (1.0, 0.0, -2.0)}
    assert close(made[1.0], stock[1.0])
    for one, other in ((0.0, 1.0), (-2.0, 1.0), (-2.0, 0.0)):
        assert not torch.allclose(made[one], made[other], atol=1e-2)
    with counted(pipe.unet) as calls:
        run(twin, guidance_scale=0.0)
        run(twin, guidance_scale=1.0)
    assert calls == [2] * 12


# Refusals


def test_other_pipelines_are_refused(sd: Any) -> None:
    """By name, with what there is for them."""
    other = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="StableDiffusionImg2ImgPipeline cannot.*callbacks/guiders.py"):
        mitigate(other, NoMitigation())
    with pytest.raises(ValueError, match="UNet2DConditionModel cannot be mitigated"):
        mitigate(sd.unet)


@pytest.mark.parametrize(
    "rule",
    [
        TwoPassTransition(),
        StaticTransition(500, steps_after=200),
        DynamicTransition(restart_solver=True),
        Detour(StaticTransition(), prompt="a dog"),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_need_our_own_loop_are_refused(sd: Any, rule: GuidanceRule) -> None:
    for rules in ([rule], [StaticTransition(500), rule]):
        with pytest.raises(ValueError, match=f"{type(rule).__name__} with these options .*infer predict"):
            mitigate(sd, *rules)


def test_a_unet_that_takes_the_scale_as_an_input_is_refused(built: dict[str, Any]) -> None:
    pipe = quiet(random_pipeline())
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config, time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="distilled"):
        mitigate(pipe)


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({}, {"guidance_rescale": 0.7}, "guidance_rescale cannot be combined"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, {}, "FlowMatchEuler.* is not supported.*ddim,"),
        ({"scheduler": KDPM2DiscreteScheduler()}, {}, "KDPM2DiscreteScheduler is not supported"),
        ({"prediction_type": "sample"}, {}, "'sample'"),
        ({"rules": [StaticTransition(0.5)]}, {}, "never give guidance: the 6 timesteps"),
        ({"rules": [DynamicTransition()]}, {"num_inference_steps": 2}, "at least 3"),
        ({"rules": [StaticTransition(500, 3.0)]}, {"guidance_scale": 3.0}, "guidance_before equals"),
    ],
)  # fmt: skip
def test_what_a_call_cannot_do_is_an_error(sd: Any, change: dict, options: dict, message: str) -> None:
    if "prediction_type" in change:
        change = {"scheduler": type(sd.scheduler).from_config(sd.scheduler.config, **change)}
    twin = mitigate(sd, *change.get("rules", []))
    twin.scheduler = change.get("scheduler", sd.scheduler)
    with pytest.raises(ValueError, match=message):
        run(twin, **options)
    assert "forward" not in vars(sd.unet)


# The bench


def test_the_bench_prints_a_table(tiny_pipeline: Path, capsys: pytest.CaptureFixture) -> None:
    """Two of its six steps are above 500: what each way evaluates."""
    options = ["--steps", "6", "--batch", "2", "--repeats", "2"]
    timings = bench.main(["--pipeline", str(tiny_pipeline), *options])
    assert {timing.name: timing.rows for timing in timings} == {
        "stock": 12, "our loop": 12, "mitigate(pipe)": 12, "STP": 10, "OG+STP": 12, "DTP": 12,
    }  # fmt: skip
    assert all(timing.seconds > 0 for timing in timings) and timings[0].ratio == 1
    printed = capsys.readouterr().out
    assert "UNet rows/image" in printed and all(timing.name in printed for timing in timings)


def test_the_bench_counts_rows_that_are_cut(tiny_pipeline: Path) -> None:
    """And the UNet keeps no hook."""
    pipe = load_pipeline(str(tiny_pipeline))
    assert bench.rows_of(pipe.unet, bench.ways(pipe, 4, 3, 7.5)["STP"]) == 3 * (2 + 2 * 2)
    assert not pipe.unet.conv_in._forward_hooks
