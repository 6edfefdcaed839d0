"""What all rules share that run or differentiate the model before the first step."""

import copy
from collections.abc import Iterator

import pytest
import torch

from callbacks.mitigations.base import Mitigation
from callbacks.mitigations.first_step import FirstStep
from callbacks.mitigations.noise.noise_adjustment import NoiseAdjustment
from callbacks.mitigations.noise.noise_optimization import NoiseOptimization
from callbacks.mitigations.noise.sharpness_aware_noise import SharpnessAwareNoise
from callbacks.mitigations.prompts.embedding_optimization import EmbeddingOptimization
from infer.denoising.hooks import Batch, rms
from tests.callbacks.mitigations.inputs import AsVelocity, changed
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
SEED = 9
LEVEL = 0.8  # RMS(eps_c - eps_u) of the UNet below: one sample starts under it
RULES = {
    "wen": EmbeddingOptimization(target=LEVEL, iterations=3),
    "han_sample": NoiseOptimization(target=LEVEL, iterations=3),
    "han_batch": NoiseAdjustment(),
    "sail": SharpnessAwareNoise(target=LEVEL + 0.01, gaussianity=0.01, iterations=2, restarts=2),
}
GRADIENTS = {"wen", "han_sample", "sail"}


@pytest.fixture(params=RULES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def rule(name: str) -> Mitigation:
    return copy.deepcopy(RULES[name])


@pytest.fixture(scope="module")
def model(unet: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """In double precision, with outputs that depend on the prompt enough."""
    torch.manual_seed(SEED)
    model = type(unet).from_config(unet.config).eval().double()
    with torch.no_grad():
        model.conv_out.weight.mul_(20)
    return model


def differences(model: torch.nn.Module) -> torch.Tensor:
    batch = changed(model, dtype=torch.float64)
    with torch.no_grad():
        return rms(FirstStep(batch).difference(batch.noise, torch.arange(3)))


def test_a_batch_of_three_is_three_batches_of_one(model: torch.nn.Module, rule: Mitigation) -> None:
    """Also where its samples stop at different iterations."""
    whole = changed(model, rule, dtype=torch.float64)
    assert (differences(model) > LEVEL).tolist().count(True) in (1, 2)
    for row in range(3):
        alone = changed(model, rule, rows=[row], dtype=torch.float64)
        assert torch.allclose(alone.noise[0], whole.noise[row], atol=1e-6)
        assert torch.allclose(alone.conditional_embedding[0], whole.conditional_embedding[row], atol=1e-6)
        assert alone.nfe[0] == whole.nfe[row]
        assert alone.gradient_passes[0] == whole.gradient_passes[row]


def test_noise_and_velocity_are_one(model: torch.nn.Module, rule: Mitigation) -> None:
    """A model of v that says the same gives the same inputs: d = alpha (v_c - v_u)."""
    noise = changed(model, rule, dtype=torch.float64)
    velocity = changed(AsVelocity(model), rule, prediction="v_prediction", dtype=torch.float64)
    assert torch.allclose(noise.noise, velocity.noise, atol=1e-6)
    assert torch.allclose(noise.conditional_embedding, velocity.conditional_embedding, atol=1e-6)


def test_rows_and_gradients_are_counted(model: torch.nn.Module, name: str, rule: Mitigation) -> None:
    """Against those that pass the UNet's first layer, forwards and backwards."""
    rows = {"forward": 0, "backward": 0}

    def forward(module, given, output) -> None:
        rows["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(backward)

    def backward(gradient: torch.Tensor) -> None:  # samples that are done have none
        rows["backward"] += int(gradient.flatten(1).any(1).sum())

    hook = model.conv_in.register_forward_hook(forward)
    try:
        batch = changed(model, rule, dtype=torch.float64)
    finally:
        hook.remove()
    assert rows["forward"] == batch.nfe.sum()
    if name == "wen":  # nothing before the prompt has a gradient: one row an iteration, but the last one
        assert (batch.nfe - batch.gradient_passes).tolist().count(1) in (1, 2)
    else:
        assert rows["backward"] == batch.gradient_passes.sum()
    assert (batch.gradient_passes.sum() > 0) == (name in GRADIENTS)


def test_weights_stay_as_they_are(model: torch.nn.Module, rule: Mitigation) -> None:
    """And which of them take gradients; what comes out holds no graph."""
    model = copy.deepcopy(model)
    model.conv_in.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = [weight.requires_grad for weight in model.parameters()]
    batch = changed(model, rule, dtype=torch.float64)
    assert [weight.requires_grad for weight in model.parameters()] == trained and not all(trained)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not batch.noise.requires_grad and not batch.conditional_embedding.requires_grad


@pytest.mark.parametrize("way", ["bfloat16", "float16", "autocast"])
def test_half_precision_leads_to_the_same(model: torch.nn.Module, rule: Mitigation, way: str) -> None:
    """With half-precision weights, and under autocast; the optimizer's steps are not lost in rounding."""
    dtype = torch.float32 if way == "autocast" else getattr(torch, way)
    exact = changed(model, rule, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        half = changed(copy.deepcopy(model).to(dtype), rule, dtype=dtype)
    start = changed(model, dtype=torch.float64)
    for name in ("noise", "conditional_embedding"):
        got, wanted, before = (getattr(batch, name) for batch in (half, exact, start))
        assert got.dtype == dtype and got.isfinite().all()
        assert (rms(got - wanted) <= 0.01 + 0.3 * rms(wanted - before)).all()


def test_at_zero_terminal_snr_the_second_step_counts(model: torch.nn.Module) -> None:
    """At the first one the difference is 0 whatever the prompt."""
    scheduler = scheduler_of(
        prediction="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True, steps_offset=0
    )
    scheduler.set_timesteps(10)
    batch = Batch(model, scheduler, *(x.double() for x in inputs(3)), 7.5)
    first = FirstStep(batch)
    assert first.timestep == scheduler.timesteps[1] and first.alpha > 0
