"""What the models are trained on: targets, noise, schedules, and the autoencoder's own arithmetic."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler
from lightning.pytorch import Trainer

from train.base_model.autoencoder import edges, psnr, quiet_start, whiten
from train.base_model.clip import contrastive_loss
from train.finetune import Finetune
from train.objective import SharedDraws, generator_for, min_snr_weight, offset_noise, training_target
from train.schedule import lr_schedule

CPU = torch.device("cpu")


def small_autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_the_closed_form(kind: str) -> None:
    """v = alpha eps - sigma x_0, and the noised latents and the target give x_0 back."""
    scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear")
    x, noise = torch.randn(2, 4, 3, 5, 5, generator=generator_for(CPU, 0))
    timesteps = torch.tensor([0, 300, 700, 999])
    alpha = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    target = training_target(scheduler, x, noise, timesteps)
    expected = noise if kind == "epsilon" else alpha * noise - sigma * x
    torch.testing.assert_close(target, expected)
    noisy = scheduler.add_noise(x, noise, timesteps)
    torch.testing.assert_close(noisy, alpha * x + sigma * noise)


def test_models_that_predict_the_sample_are_refused() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="'sample' is not supported"):
        training_target(DDPMScheduler(prediction_type="sample"), x, x, torch.tensor([1]))


def test_a_generator_is_a_function_of_its_key() -> None:
    """Any part of the key matters, its position too, and the global generator neither is used nor matters."""

    def draw(*key: int) -> tuple:
        return tuple(torch.randn(4, generator=generator_for(CPU, *key)).tolist())

    torch.manual_seed(1)
    first = draw(0, 1, 2, 3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert draw(0, 1, 2, 3) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    keys = [
        (seed, rank, step, micro)
        for seed in (0, 1)
        for rank in (0, 1)
        for step in (0, 1, 1000)
        for micro in (0, 1)
    ]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert len({draw(*key) for key in [(0,), (0, 0), (0, 0, 0)]}) == 3


@pytest.mark.parametrize("variants", [1, 2])
def test_half_of_the_images_is_mirrored(variants: int) -> None:
    """If the cache holds mirrored ones. Here their latents are negative, and far from the noise."""
    mean = torch.tensor([1e4, -1e4])[:variants].view(1, variants, 1, 1, 1).expand(64, variants, 4, 8, 8)
    for step in range(2):
        mirrored = (one_step(mean, seed=step)[1].mean((1, 2, 3)) < 0).sum()
        assert 20 < mirrored < 44 if variants == 2 else mirrored == 0


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
def test_min_snr_weights_are_the_closed_form(gamma: float) -> None:
    """In numbers of the schedule itself. Of v the weight has sigma^2 = 1 / (SNR + 1) in it."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.double) ** 2
    kept = (1 - betas).cumprod(0)
    timesteps = torch.tensor([0, 1, 100, 500, 900, 999])
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for kind in ("epsilon", "v_prediction"):
        weights = min_snr_weight(DDPMScheduler(prediction_type=kind, **options), timesteps, gamma)
        for t, weight in zip(timesteps.tolist(), weights.tolist(), strict=True):
            snr = kept[t].item() / (1 - kept[t].item())
            expected = min(snr, gamma) / (snr if kind == "epsilon" else snr + 1)
            assert weight == pytest.approx(expected, rel=1e-3)


def test_min_snr_weights_without_any_signal() -> None:
    """A schedule that ends in pure noise: v has nothing to learn of the image there, epsilon all."""
    end = torch.tensor([999])
    for kind, weight in (("epsilon", 1.0), ("v_prediction", 0.0)):
        scheduler = DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
        assert min_snr_weight(scheduler, end, 5.0).item() == pytest.approx(weight, abs=1e-6)


MEAN = torch.randn(64, 1, 4, 8, 8, generator=generator_for(CPU, 9))


def one_step(mean: torch.Tensor = MEAN, **options) -> tuple[dict, torch.Tensor]:
    """A training step of a model that predicts half of its input; and that input."""
    module, seen = Finetune("", **options), []
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.log = lambda *_, **__: None
    module.noise_scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    module.unet = lambda noisy, *_: seen.append(noisy) or SimpleNamespace(sample=noisy / 2)
    batch = {"mean": mean, "std": torch.ones_like(mean), "embedding": torch.zeros(64, 8, 16)}
    module.empty = torch.zeros(1, 8, 16)
    return module.training_step(batch, 0), seen[0]


def test_without_options_the_loss_is_the_plain_one() -> None:
    out, noisy = one_step()
    mean, generator = MEAN[:, 0], generator_for(CPU, 0, 0, 0, 0)
    torch.randint(0, 1, (64,), generator=generator)
    latents = mean + torch.randn(mean.shape, generator=generator)
    noise = torch.randn(mean.shape, generator=generator)
    timesteps = torch.randint(0, 1000, (64,), generator=generator)
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    assert torch.equal(noisy, scheduler.add_noise(latents, noise, timesteps))
    plain = F.mse_loss(noisy / 2, training_target(scheduler, latents, noise, timesteps))
    torch.testing.assert_close(out["loss"], plain, rtol=1e-6, atol=0)
    assert torch.equal(out["timesteps"], timesteps)
    torch.testing.assert_close(out["errors"].mean(), out["loss"])


def test_a_weighted_loss_weighs_each_sample() -> None:
    plain, weighted = one_step()[0], one_step(min_snr_gamma=5.0)[0]
    assert torch.equal(plain["errors"], weighted["errors"])  # what is reported stays comparable
    scheduler = DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    weights = min_snr_weight(scheduler, plain["timesteps"], 5.0)
    torch.testing.assert_close(weighted["loss"], (weights * plain["errors"]).mean())
    assert abs(weighted["loss"] / plain["loss"] - 1) > 0.05


def test_offset_noise_moves_whole_channels() -> None:
    """By N(0, strength^2), each channel of each image by its own; the rest of a step is as without it."""
    noise = torch.zeros(500, 4, 8, 8)
    moved = offset_noise(noise, 0.1, SharedDraws(CPU, 500, 0, 1, 0).normal(4, 1, 1))
    assert torch.equal(moved, moved[..., :1, :1].expand_as(moved))
    assert len(moved[..., 0, 0].unique()) > 1990
    assert moved[..., 0, 0].std().item() == pytest.approx(0.1, rel=0.05)
    (plain, noisy), (offset, changed) = one_step(), one_step(noise_offset=0.1)
    assert torch.equal(plain["timesteps"], offset["timesteps"])
    difference = (changed - noisy) / noise_share(plain["timesteps"]).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        difference, difference.mean((2, 3), keepdim=True).expand_as(difference), atol=1e-4, rtol=0
    )
    assert difference.std().item() == pytest.approx(0.1, rel=0.15)


def noise_share(timesteps: torch.Tensor) -> torch.Tensor:
    """sigma_t of the schedule in these tests."""
    return (1 - DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod[timesteps]).sqrt()


def test_psnr_is_the_closed_form() -> None:
    """An error of 0.2 in [-1, 1] is 0.1 of the peak: 20 dB. Values are clipped, images stay apart."""
    black = -torch.ones(3, 3, 8, 8)
    image = black + torch.tensor([0.2, 2.0, -1.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(psnr(image, black), torch.tensor([20.0, 0.0, 100.0]))


def test_edges_are_the_differences_of_neighbours() -> None:
    image = torch.tensor([[[[0.0, 1.0, 3.0], [10.0, 10.0, 10.0]]]])
    assert edges(image).tolist() == [[1.0, 2.0, 0.0, 0.0, 10.0, 9.0, 7.0]]


@torch.no_grad()
def test_whitening_changes_the_latents_and_nothing_else() -> None:
    vae, images = small_autoencoder(), torch.randn(32, 3, 16, 16, generator=generator_for(CPU, 0))
    vae.quant_conv.bias.copy_(torch.arange(6.0))  # channels with means of their own
    vae.register_to_config(scaling_factor=0.5)
    before = vae.encode(images).latent_dist
    decoded = vae.decode(before.mean).sample
    mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    assert mean.abs().max() > 0.5 and (std - 1).abs().max() > 0.2

    whiten(vae, mean, std)
    after = vae.encode(images).latent_dist
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std, before.std / std.view(1, 3, 1, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    assert vae.config.scaling_factor == 1


@torch.no_grad()
def test_a_quiet_start_has_little_noise_and_identity_blocks() -> None:
    vae, images = small_autoencoder(), torch.randn(8, 3, 16, 16, generator=generator_for(CPU, 0))
    quiet_start(vae, -6.0)
    assert (vae.encode(images).latent_dist.logvar + 6).abs().max() < 0.5
    block, x = vae.decoder.mid_block.resnets[0], torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(block(x, None), x)


def test_contrastive_loss_of_known_logits() -> None:
    """Without knowledge ln(B); near 0 when true pairs stand out; a shared caption is no mistake."""
    different, shared = torch.eye(4), torch.ones(4, 4)
    assert contrastive_loss(torch.zeros(4, 4), different) == pytest.approx(math.log(4))
    assert contrastive_loss(50 * torch.eye(4), different) < 1e-6
    assert contrastive_loss(50 * torch.eye(4).roll(1, 0), different) > 10
    assert contrastive_loss(torch.zeros(4, 4), shared) == pytest.approx(math.log(4))


def rates(decay: str, steps: int, *args: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    configured = lr_schedule(optimizer, decay, *args)
    assert configured["lr_scheduler"]["interval"] == "step"
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        configured["lr_scheduler"]["scheduler"].step()
    return values


def test_warmup_then_constant() -> None:
    assert rates("constant", 6, 4, 9) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates("constant", 2, 0, 9) == [2.0, 2.0]


def test_warmup_then_cosine_to_zero() -> None:
    assert rates("cosine", 8, 2, 6) == pytest.approx(
        [1.0, 2.0, 2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0]
    )


def test_a_cosine_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_steps \(5\) above warmup_steps \(5\)"):
        rates("cosine", 1, 5, 5)
