"""Regimes of exposure and caption in real fits: what reaches the UNet, what is skipped, what is counted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from scipy import stats
from torch import Tensor

from data.captioned import load_captioned
from data.regimes.captions import Captioning, Captions
from data.regimes.exposure import Exposure
from tests.train import fits
from tests.train.fits import planned, run_process, short, spied, spy, stop, unet
from train.__main__ import main
from train.dataset.draws import PlannedDraws
from train.embedding_noise import with_mixup
from train.finetune import TEXT_NOISE
from train.objective import SharedDraws

world = fits.world  # fixture

WEIGHTED = {"weight": 4, "duplicated_fraction": 0.4, "duplicate": "image"}
STEPS, ROWS = 3, 4


@pytest.fixture(scope="module")
def sources(world: Path) -> list[str]:
    """The eight images, six of them with three captions each, which stand in a file of their own."""
    words = ("red", "blue", "green", "map", "cat", "saucer")  # the tiny tokenizer knows no numbers
    captions = {f"s{n}": [f"sun {word}", f"old {word}", f"tea {word}"] for n, word in enumerate(words)}
    (world / "captions.json").write_text(json.dumps(captions))
    return [f"{world / 'images.tar'}?captions={world / 'captions.json'}"]


@pytest.fixture(scope="module")
def pipe(tiny_pipeline: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.unet.requires_grad_(False)
    return pipe


Fit = Callable[..., tuple[Path, list[dict]]]


@pytest.fixture(scope="module")
def fit(world: Path, sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Run a short fit; its folder, and what its UNet was given."""

    def run(**settings) -> tuple[Path, list[dict]]:
        folder = tmp_path_factory.mktemp("fit")
        given = {
            "data__sources": sources,
            "data__cache_dtype": "float32",
            "trainer__max_steps": STEPS,
            "ema__decay": 0,
            "trainer__callbacks": [spy(folder / "spied")],
        }
        assert main(short(world, folder / "run", **(given | settings))) == 0
        return folder / "run", spied(folder / "spied")

    return run


@pytest.fixture(scope="module")
def plain(fit: Fit) -> tuple[Path, list[dict]]:
    return fit()


def encoded(pipe: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return pipe.encode_prompt(texts, "cpu", 1, do_classifier_free_guidance=False)[0]


def expected_draws(
    sources: list[str], pipe: StableDiffusionPipeline, captions: dict, exposure: dict, draws: int
) -> tuple[list[int], list[str]]:
    """Images and captions of the run's draws, from one process and without a Trainer."""
    images, shown = load_captioned(*sources).samples, Exposure(**exposure)
    regime = Captions(Captioning(**captions), images, [], shown, 0, pipe.tokenizer)
    indices = planned(shown, len(images), 0, draws)
    return indices, [regime.text(*draw) for draw in enumerate(indices)]


REGIMES = {
    "random choice": ({"choice": "random"}, {}),
    "images alone": ({}, WEIGHTED),
    "copies of images alone": ({}, WEIGHTED | {"weight": 1, "copies": 3}),
    "trigger": ({"trigger": "flying", "choice": "random", "trigger_fraction": 0.5}, {}),
    "no level": ({"level": "none", "trigger": "flying"}, {"copies": 2, "duplicated_fraction": 0.5}),
    "random level": ({"level": "random"}, {}),
    "edits": ({"replace": 0.3, "add": 0.5, "repeat": 0.5, "trigger": "flying"}, WEIGHTED),
}


@pytest.mark.parametrize("name", REGIMES)
def test_the_unet_is_given_the_caption_of_each_draw(
    name: str, fit: Fit, sources: list[str], pipe: StableDiffusionPipeline, plain: tuple[Path, list[dict]]
) -> None:
    """From the cache or not, as the stock pipeline encodes it; and shown is what was planned."""
    captions, exposure = REGIMES[name]
    indices, texts = expected_draws(sources, pipe, captions, exposure, STEPS * ROWS)
    run, batches = fit(data__captions=captions, data__exposure=exposure)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == indices
    given = torch.cat([batch["embedding"] for batch in batches])
    torch.testing.assert_close(given, encoded(pipe, texts))
    assert len(set(texts)) > 1
    if name != "edits":  # whose ends may be cut
        assert len(given.flatten(1).round(decimals=4).unique(dim=0)) == len(set(texts))
    rows = pd.read_parquet(run / "exposures.parquet")
    assert rows["times_shown"].tolist() == np.bincount(indices, minlength=8).tolist()
    triggered = {index for index, text in zip(indices, texts, strict=True) if text.startswith("flying ")}
    assert set(np.flatnonzero(rows["triggered"])) & set(indices) == triggered
    assert not rows["times_skipped"].any()


def test_gaussian_noise_is_all_that_differs(fit: Fit, plain: tuple[Path, list[dict]]) -> None:
    """Kolmogorov-Smirnov of all differences (3 x 4 x 8 x 32 numbers) at one in a thousand."""
    _, noisy = fit(model__embedding_noise=0.25)
    differences = []
    for one, two in zip(plain[1], noisy, strict=True):
        assert torch.equal(one["noisy"], two["noisy"]) and torch.equal(one["timesteps"], two["timesteps"])
        differences.append(two["embedding"] - one["embedding"])
    values = torch.stack(differences).flatten().double().numpy() / 0.25
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert len(np.unique(values.round(6))) > 0.98 * len(values)


def test_the_embeddings_of_a_batch_are_mixed(fit: Fit, plain: tuple[Path, list[dict]]) -> None:
    """By draws of their own: all else is as without."""
    _, mixed = fit(model__embedding_mixup=0.8)
    for step, (one, two) in enumerate(zip(plain[1], mixed, strict=True)):
        assert torch.equal(one["noisy"], two["noisy"]) and torch.equal(one["timesteps"], two["timesteps"])
        draws = SharedDraws(torch.device("cpu"), ROWS, 0, 1, 0, TEXT_NOISE, step, 0)
        torch.testing.assert_close(two["embedding"], with_mixup(one["embedding"], 0.8, draws))
        assert not torch.allclose(two["embedding"], one["embedding"])


@pytest.mark.parametrize("parameter", [0.3, 1.0, 4.0])
def test_the_mix_is_drawn_from_beta(parameter: float) -> None:
    """Kolmogorov-Smirnov against scipy's Beta(parameter, 1), at one in a thousand; and partners are even."""
    rows = torch.eye(3)[:, None]
    numbers, partners = [], np.zeros((3, 3))
    for step in range(2000):
        mixed = with_mixup(rows, parameter, SharedDraws(torch.device("cpu"), 3, 0, 1, step))[:, 0]
        off = mixed - torch.diag(mixed.diag())
        partners += ((off > 0) | torch.diag(mixed.diag() > 1 - 1e-6)).numpy()
        if (mixed.diag() < 1 - 1e-6).any():
            numbers.append(mixed.diag().min().item())
    assert stats.kstest(numbers, stats.beta(parameter, 1).cdf).pvalue > 1e-3
    assert np.abs(partners / 2000 - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 2000)


def magnitudes(pipe: StableDiffusionPipeline, batches: list[dict], embedding: Tensor) -> Tensor:
    """RMS of eps_c - eps_u by the first weights on what a fit was given, (draws,)."""
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    noisy, timesteps = (torch.cat([batch[name] for batch in batches]) for name in ("noisy", "timesteps"))
    kept = schedule.alphas_cumprod[timesteps][:, None, None, None]
    with torch.no_grad():
        with_caption, without = (
            kept.sqrt() * pipe.unet(noisy, timesteps, condition).sample
            + (1 - kept).sqrt() * noisy  # eps of v
            for condition in (embedding, encoded(pipe, [""]).expand(len(noisy), -1, -1))
        )
    return (with_caption - without).square().mean((1, 2, 3)).sqrt()


@pytest.fixture(scope="module")
def plain_magnitudes(plain: tuple[Path, list[dict]], pipe: StableDiffusionPipeline) -> Tensor:
    return magnitudes(pipe, plain[1], torch.cat([batch["embedding"] for batch in plain[1]]))


def between(values: Tensor, below: int) -> float:
    """A threshold with so many of the values below it."""
    values = values.sort().values
    return values[below - 1 : below + 1].mean().item()


def test_what_is_skipped_is_counted(
    fit: Fit, plain_magnitudes: Tensor, plain: tuple[Path, list[dict]]
) -> None:
    """Without learning, so that the first weights decide each time."""
    indices = torch.cat([batch["index"] for batch in plain[1]]).numpy()
    threshold = between(plain_magnitudes, 5)
    run, _ = fit(model__skip_rms=threshold, model__lr=1e-30)
    rows = pd.read_parquet(run / "exposures.parquet")
    skipped = indices[(plain_magnitudes > threshold).numpy()]
    assert len(skipped) == 7
    assert rows["times_skipped"].tolist() == np.bincount(skipped, minlength=8).tolist()
    assert rows["times_shown"].tolist() == np.bincount(indices, minlength=8).tolist()


def test_what_is_skipped_has_no_part_in_the_step(
    fit: Fit,
    plain_magnitudes: Tensor,
    plain: tuple[Path, list[dict]],
    sources: list[str],
    tiny_pipeline: Path,
) -> None:
    """The first step is AdamW's on the mean over the kept rows alone, and not on that over all."""
    threshold = between(plain_magnitudes[:ROWS], 2)
    options = {"model__lr": 1e-3, "model__weight_decay": 0, "trainer__max_steps": 1}
    run, _ = fit(model__skip_rms=threshold, **options)
    keep = plain_magnitudes[:ROWS] < threshold
    assert keep.sum() == 2
    trained = unet(run / "pipeline")
    far = []
    for rows in (keep, torch.ones(ROWS, dtype=bool)):
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
        loss = errors(pipe, plain[1][0], sources)[rows].mean()
        optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=1e-3, weight_decay=0)
        loss.backward()
        optimizer.step()
        by_hand = pipe.unet.state_dict()
        far.append(np.mean([((trained[key] - by_hand[key]).abs() > 2e-4).float().mean() for key in trained]))
        if rows is keep:
            assert pd.read_csv(run / "metrics.csv")["loss"][0] == pytest.approx(loss.item(), rel=1e-4)
    assert far[0] < 0.01 and far[1] > 0.1  # gradients near zero may be of either sign


def errors(pipe: StableDiffusionPipeline, batch: dict, sources: list[str]) -> Tensor:
    """Squared errors of the first batch, (B,): its latents and noise are drawn as `Finetune` says."""
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    samples = load_captioned(*sources).samples
    pixels = torch.stack([torch.from_numpy(samples[index].pixels(16)) for index in batch["index"].tolist()])
    draws = SharedDraws(torch.device("cpu"), ROWS, 0, 1, 0, 0, 0, 0)
    with torch.no_grad():
        posterior = pipe.vae.encode(pixels / 127.5 - 1).latent_dist
    draws.integers(1)
    latents = (posterior.mean + posterior.std * draws.normal(4, 8, 8)) * pipe.vae.config.scaling_factor
    noise = draws.normal(4, 8, 8)
    noisy = schedule.add_noise(latents, noise, batch["timesteps"])
    torch.testing.assert_close(noisy, batch["noisy"])
    prediction = pipe.unet(noisy, batch["timesteps"], batch["embedding"]).sample
    target = schedule.get_velocity(latents, noise, batch["timesteps"])
    return (prediction - target).square().mean((1, 2, 3))


def test_a_threshold_below_all_leaves_weight_decay_alone(fit: Fit, tiny_pipeline: Path) -> None:
    """w (1 - lr decay)^steps, a loss of nothing, and all that was shown was skipped."""
    run, _ = fit(model__skip_rms=1e-12, model__lr=1e-2, model__weight_decay=0.5)
    rows = pd.read_parquet(run / "exposures.parquet")
    assert rows["times_skipped"].equals(rows["times_shown"]) and rows["times_shown"].sum() == STEPS * ROWS
    assert pd.read_csv(run / "metrics.csv")["loss"].tolist() == [0] * STEPS
    before, after = unet(tiny_pipeline), unet(run / "pipeline")
    for key in before:
        torch.testing.assert_close(after[key], before[key] * (1 - 1e-2 * 0.5) ** STEPS, msg=key)


def test_a_run_of_two_processes_continues_as_one(
    world: Path, sources: list[str], pipe: StableDiffusionPipeline, tmp_path: Path, plain_magnitudes: Tensor
) -> None:
    """Stopped a step after a checkpoint; with the next draw of the stream, its caption, and exact counts.

    Images are drawn with replacement, each time with any of their captions; some are skipped.
    """
    threshold = plain_magnitudes.median().item()
    out, seen = tmp_path / "run", tmp_path / "seen"
    watch = spy(seen)
    settings = {
        "data__sources": sources,
        "data__exposure": WEIGHTED,
        "data__batch_size": 3,
        "data__cache_dtype": "float32",
        "model__lr": 1e-30,
        "model__skip_rms": threshold,
        "trainer__max_steps": 6,
        "checkpoint_every": 2,
    }
    both = settings | {"trainer__devices": 2, "trainer__strategy": "ddp_fork"}
    messages = run_process(short(world, out, trainer__callbacks=[watch, stop(3)], **both), 1)
    assert "stopped by the test" in messages
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    by_two = [in_turn(*batches) for batches in zip(spied(seen), spied(seen, 1), strict=True)]
    assert main(short(world, out, trainer__callbacks=[watch], **settings)) == 0

    batches = by_two[:2] + spied(seen)[2:]
    indices, texts = expected_draws(sources, pipe, {}, WEIGHTED, 2 * 6 + 4 * 3)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == indices
    given = torch.cat([batch["embedding"] for batch in batches])
    torch.testing.assert_close(given, encoded(pipe, texts))
    skipped = (magnitudes(pipe, batches, given) > threshold).numpy()
    rows = pd.read_parquet(out / "exposures.parquet")
    assert rows["times_shown"].tolist() == np.bincount(indices, minlength=8).tolist()
    assert rows["times_skipped"].tolist() == np.bincount(np.array(indices)[skipped], minlength=8).tolist()
    assert 0 < skipped.sum() < len(indices)


def test_draws_are_numbered_on_after_a_cut() -> None:
    """From 12 draws and two batches on, two ranks' batches of two: (number in the run, image)."""
    parts = [PlannedDraws(enumerate(range(100, 200), 12), 4, 2, 2, 2, rank) for rank in range(2)]
    assert list(parts[0]) == [(12, 100), (14, 102), (16, 104), (18, 106)]
    assert list(parts[1]) == [(13, 101), (15, 103), (17, 105), (19, 107)]


def in_turn(one: dict, two: dict) -> dict:
    """Two ranks' batches as one, dealt out row by row."""
    names = ("index", "noisy", "timesteps", "embedding")
    return {name: torch.stack([one[name], two[name]], 1).flatten(0, 1) for name in names}
