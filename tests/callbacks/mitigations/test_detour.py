"""The detour: its formula, its ways (own prompt, base model), its cost, its memory, and who has none."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from callbacks.mitigations.detour import Detour, without
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.static_transition import StaticTransition
from infer.__main__ import main
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images
from infer.models.pipeline import load_pipeline
from tests.callbacks.mitigations.detour_batches import CPU, SCALE, STEPS, SWITCH, denoised
from tests.conftest import CAPTIONS
from tests.infer.denoising.loops import requests, walk

pytestmark = pytest.mark.usefixtures("one_thread")
EARLY = 5  # of the ten leading timesteps 901, 801 ... those above 500: 901 to 501


def text(pipe, prompts: list[str]) -> Tensor:
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(tokens)[0]


@torch.no_grad()
def by_hand(pipe, requested: list[Request], before: Callable[[Tensor, int], Tensor]) -> Tensor:
    """DDIM with `before(latents, t)` as the prediction while t > 500, ordinary guidance afterwards."""
    seeds = [torch.Generator().manual_seed(request.seed) for request in requested]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=seed) for seed in seeds])
    own = predictions(pipe, [""] * len(requested), [request.prompt for request in requested])

    def predict(index: int, t: Tensor, x: Tensor) -> Tensor:
        if t > SWITCH:
            return before(x, int(t))
        u, c = own(x, int(t))
        return u + SCALE * (c - u)

    return walk(pipe.scheduler, noise, STEPS, predict)[-1]


def predictions(pipe, *texts: list[str]) -> Callable[[Tensor, int], list[Tensor]]:
    embedded = [text(pipe, prompts) for prompts in texts]
    return lambda x, t: [pipe.unet(x, t, encoder_hidden_states=e).sample for e in embedded]


OTHERS = ["tea cup", "sun", "old map"]


@pytest.mark.parametrize("repulsion", [0.0, 1.5])
def test_towards_another_prompt(pipe, repulsion: float) -> None:
    """eps_u + s (eps_n - eps_u) - r (eps_c - eps_u), from the column alternative_prompt."""
    requested = requests(3, alternative_prompt=OTHERS)
    rule = Detour(StaticTransition(SWITCH), repulsion=repulsion)
    predict = predictions(pipe, [""] * 3, CAPTIONS[:3], OTHERS)

    def before(x: Tensor, t: int) -> Tensor:
        u, c, n = predict(x, t)
        return u + SCALE * (n - u) - repulsion * (c - u)

    result = denoised(pipe, rule, requested)
    assert torch.allclose(result.latents, by_hand(pipe, requested, before), atol=1e-4)
    early = 3 if repulsion else 2  # u, n and, for the repulsion, c
    assert result.nfe.tolist() == [early * EARLY + 2 * (STEPS - EARLY)] * 3
    assert (
        result.guidance_scale[:, :EARLY].eq(-repulsion).all()
        and result.guidance_scale[:, EARLY:].eq(SCALE).all()
    )
    assert result.transition_timestep.tolist() == [401] * 3 and rule.alternatives == OTHERS


def test_one_prompt_for_all(pipe) -> None:
    column = denoised(pipe, Detour(StaticTransition(SWITCH)), requests(3, alternative_prompt=["sun"] * 3))
    flag = denoised(pipe, Detour(StaticTransition(SWITCH), prompt="sun"), requests(3))
    assert torch.equal(column.latents, flag.latents)


@pytest.mark.parametrize("repulsion, early", [(0.0, 2), (1.5, 4)])
def test_the_base_model_draws_first(pipe, base: Path, repulsion: float, early: int) -> None:
    """All of its own guidance, with the prompt and the row's own negative prompt."""
    requested, before_it = requests(3), load_pipeline(str(base))
    own, other = (predictions(p, [""] * 3, CAPTIONS[:3]) for p in (pipe, before_it))

    def before(x: Tensor, t: int) -> Tensor:
        (u, c), (bu, bc) = own(x, t), other(x, t)
        return bu + SCALE * (bc - bu) - repulsion * (c - u)

    result = denoised(
        pipe, Detour(StaticTransition(SWITCH), base_pipeline=str(base), repulsion=repulsion), requested
    )
    assert torch.allclose(result.latents, by_hand(pipe, requested, before), atol=1e-4)
    assert result.nfe.tolist() == [early * EARLY + 2 * (STEPS - EARLY)] * 3


def test_orthogonal_leaves_out_what_leads_to_the_memorized_image(pipe) -> None:
    requested = requests(3, alternative_prompt=OTHERS)
    predict = predictions(pipe, [""] * 3, CAPTIONS[:3], OTHERS)

    def before(x: Tensor, t: int) -> Tensor:
        u, c, n = (p.flatten(1).double() for p in predict(x, t))
        g, m = n - u, c - u
        share = torch.stack([torch.dot(a, b) / torch.dot(b, b) for a, b in zip(g, m, strict=True)])
        return (u + SCALE * (g - share.clamp(min=0)[:, None] * m) - 0.5 * m).view_as(x).float()

    rule = Detour(StaticTransition(SWITCH), repulsion=0.5, orthogonal=True)
    assert torch.allclose(
        denoised(pipe, rule, requested).latents, by_hand(pipe, requested, before), atol=1e-4
    )
    g, m = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert (without(g, m) * m).sum(1).max() <= 1e-6  # nothing along it is left, what led away is
    assert torch.equal(without(g, torch.zeros_like(m)), g)


def test_a_dynamic_transition_watches_the_memorized_prompt(pipe) -> None:
    """Not the alternative: it fires where the prompt's own difference, along this path, has a minimum."""
    rule = Detour(DynamicTransition(watch="model_output", fallback_timestep=201), prompt="sun", repulsion=1.0)
    result = denoised(pipe, rule, requests(6))
    v = result.difference_rms.double() / pipe.scheduler.alphas_cumprod[result.timesteps[0].long()].sqrt()
    expected = []
    for d in v.numpy():
        minima = [i for i in range(2, STEPS) if d[i - 2] > d[i - 1] < d[i]]
        expected.append(result.timesteps[0, min([*minima, 7])].item())
    assert result.transition_timestep.tolist() == expected and len(set(expected)) > 1
    fired = [(result.timesteps[0] > t).sum().item() for t in expected]
    assert result.nfe.tolist() == [3 * before + 2 * (STEPS - before) for before in fired]


def test_a_row_without_an_alternative_takes_the_plain_rule(pipe) -> None:
    """In one batch with rows that have one; each as if it were alone."""
    requested = requests(4, alternative_prompt=["sun", None, "tea cup", None])
    result = denoised(pipe, Detour(StaticTransition(SWITCH, -1.0), repulsion=1.5), requested)
    plain = denoised(pipe, StaticTransition(SWITCH, -1.0), requested)
    assert torch.allclose(result.latents[[1, 3]], plain.latents[[1, 3]], atol=1e-5)
    assert result.nfe.tolist() == [25, 20, 25, 20] and plain.nfe.tolist() == [20] * 4
    for number in (0, 2):
        alone = denoised(pipe, Detour(StaticTransition(SWITCH, -1.0), repulsion=1.5), [requested[number]])
        assert torch.allclose(result.latents[number], alone.latents[0], atol=1e-4)


def test_from_the_command_line(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A column of the prompt file; who has no alternative is counted and named."""
    rows = [{"prompt": "red square", "alternative_prompt": "sun"}, {"prompt": "old map"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "out"
    arguments = [
        "predict", "--model.pipeline", str(tiny_pipeline), "--model.num_inference_steps", "6",
        "--out", str(out), "--prompts", str(tmp_path / "prompts.jsonl"), "--mitigation", "Detour",
        "--mitigation.transition", "StaticTransition", "--mitigation.transition.timestep", "400",
        "--mitigation.repulsion", "0.5",
    ]  # fmt: skip
    assert main(arguments) == 0
    samples = pd.read_parquet(out / "samples.parquet")
    assert samples["alternative_prompt"].tolist()[0] == "sun" and samples["alternative_prompt"].isna()[1]
    assert json.loads((out / "summary.json").read_text())["without_alternative"] == 1
    assert "1 had no alternative and took the plain rule" in capsys.readouterr().out


def test_a_runs_own_negative_prompt_reaches_the_base_model(pipe, base: Path) -> None:
    """By the option of the run as by the column."""
    result = [
        make_images(pipe, CPU, requested, 16, SCALE, STEPS, negative, rules=[rule])[1].latents
        for requested, negative in (
            (requests(3), "old map"),
            (requests(3, negative_prompt=["old map"] * 3), ""),
        )
        for rule in [Detour(StaticTransition(SWITCH), base_pipeline=str(base))]
    ]
    assert torch.equal(*result)
    plain = make_images(pipe, CPU, requests(3), 16, SCALE, STEPS, rules=[
        Detour(StaticTransition(SWITCH), base_pipeline=str(base))])[1].latents  # fmt: skip
    assert (result[0] - plain).abs().max() > 1e-2


def test_half_precision_takes_the_same_part_out() -> None:
    random = torch.Generator().manual_seed(0)
    for size in (1e-4, 1.0, 4.0):
        g, m = (size * torch.randn(2, 4, 32, 32, generator=random) for _ in range(2))
        assert torch.allclose(without(g.half(), m.half()).float(), without(g, m), atol=5e-3 * size)
    assert torch.equal(without(g.half(), torch.zeros_like(m).half()), g.half())


def test_the_base_model_costs_a_unet_and_a_text_encoder_until_teardown(
    pipe, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded by the check, which keeps nothing, and once by the run; what that does not need is dropped."""
    loaded: list[dict[str, weakref.ref]] = []

    def load(*given, **options):
        actual = load_pipeline(*given, **options)
        loaded.append({name: weakref.ref(getattr(actual, name)) for name in ("unet", "text_encoder", "vae")})
        return actual

    def alive() -> list[str]:
        gc.collect()
        return [name for name, part in loaded[-1].items() if part() is not None]

    monkeypatch.setattr("callbacks.mitigations.detour.load_pipeline", load)
    rule = Detour(StaticTransition(SWITCH), base_pipeline=str(base))
    rule.check_requests(pipe, requests(2))
    assert alive() == []
    first, again = (denoised(pipe, rule, requests(2)).latents for _ in range(2))
    assert alive() == ["unet", "text_encoder"] and len(loaded) == 2
    rule.teardown(None, None, "predict")
    assert alive() == []
    assert torch.equal(denoised(pipe, rule, requests(2)).latents, first) and torch.equal(first, again)
    assert len(loaded) == 3


def test_samples_without_an_alternative_cost_no_more(pipe) -> None:
    """The orthogonal form uses both predictions, of the samples that are guided elsewhere."""
    requested = requests(3, alternative_prompt=["tea cup", None, "sun"])
    rule = Detour(StaticTransition(SWITCH), orthogonal=True, repulsion=0.5)
    together = denoised(pipe, rule, requested)
    assert together.nfe.tolist() == [3 * EARLY + 2 * EARLY, EARLY + 2 * EARLY, 3 * EARLY + 2 * EARLY]
    for row, request in enumerate(requested):
        alone = denoised(pipe, rule, [request])
        assert alone.nfe[0] == together.nfe[row]
        assert torch.allclose(alone.latents[0], together.latents[row], atol=1e-4)


@pytest.mark.parametrize("changed", ["captions", "exclude", "base"])
def test_a_run_is_not_finished_with_other_files_under_the_same_names(
    tmp_path: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture, changed: str
) -> None:
    """What the detour reads is a part of what the run is."""
    captions, exclude, base = tmp_path / "captions.txt", tmp_path / "exclude.txt", tmp_path / "base"
    captions.write_text("tea cup\nsun\nold map"), exclude.write_text("sun")
    shutil.copytree(tiny_pipeline, base)
    way = {"base": ["--mitigation.base_pipeline", str(base)]}.get(
        changed, ["--mitigation.captions", str(captions), "--mitigation.exclude", str(exclude)]
    )
    requested = [
        "predict", "--model.pipeline", str(tiny_pipeline), "--model.num_inference_steps", "4", "--out",
        str(tmp_path / "run"), "--trainer.accelerator", "cpu", "--prompt", "red square",
        "--prompt", "old map", "--mitigation", "Detour", "--mitigation.transition", "stp", *way,
    ]  # fmt: skip
    assert main(requested) == 0
    next((tmp_path / "run/images").iterdir()).unlink()
    assert main(requested) == 0
    if changed == "base":
        model = load_pipeline(str(base))
        torch.nn.init.zeros_(model.unet.conv_out.bias.data.add_(1))
        model.unet.conv_in.weight.data.add_(1)
        model.save_pretrained(base)
    else:
        {"captions": captions, "exclude": exclude}[changed].write_text("tea cup\nold maps")
    capsys.readouterr()
    assert main(requested) == 1
    assert "holds a different run (mitigations_sha256" in capsys.readouterr().err


def test_what_the_model_does_not_read_of_an_alternative_is_said(
    tmp_path: Path, tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the prompt, and of captions: 8 tokens are read."""
    long = "a red square and a blue circle and a green leaf"
    (tmp_path / "captions.txt").write_text(f"tea cup\n{long}")
    requested = [
        "predict", "--model.pipeline", str(tiny_pipeline), "--model.num_inference_steps", "4",
        "--trainer.accelerator", "cpu", "--prompt", "sun", "--mitigation", "Detour",
        "--mitigation.transition", "stp",
    ]  # fmt: skip
    assert main([*requested, "--mitigation.prompt", long, "--out", str(tmp_path / "one")]) == 0
    assert "1 of 2 prompts are longer" in caplog.text and repr(long) in caplog.text
    caplog.clear()
    captions = ["--mitigation.captions", str(tmp_path / "captions.txt")]
    assert main([*requested, *captions, "--out", str(tmp_path / "two")]) == 0
    assert "1 of 2 captions of" in caplog.text and repr(long) in caplog.text
