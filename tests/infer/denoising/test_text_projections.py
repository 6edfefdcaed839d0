"""Keys and values of a text: computed once while it stays the same, anew whenever it does not."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from callbacks.mitigations.static_transition import StaticTransition
from infer.denoising.hooks import DenoisingStep, GuidanceRule
from infer.denoising.loop import denoise
from infer.denoising.text_projections import projected_once, text_layers
from tests.infer.denoising.loops import by_hand, inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, SCALE = 6, 3.0


class Projections(TorchFunctionMode):
    """Counts the products with each weight."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            self.count[id(args[1])] += 1
        return function(*args, **(kwargs or {}))


class Fading(GuidanceRule):
    """Another text at each step: a new tensor, or the same one changed in place."""

    def __init__(self, in_place: bool):
        self.in_place = in_place

    def step_embedding(self, step: DenoisingStep, embedding: Tensor) -> Tensor:
        return embedding.mul_(0.5) if self.in_place else embedding * 0.5**step.index


@pytest.mark.parametrize("rules, times", [
    ([], 1), ([StaticTransition(500)], 2), ([Fading(False)], STEPS),
], ids=["plain", "transition", "changing"])  # fmt: skip
def test_a_text_is_projected_when_it_comes(unet: torch.nn.Module, rules: list, times: int) -> None:
    """Once a run; again where a transition changes the rows, or a rule the text."""
    layers = text_layers(unet)
    assert len(layers) == 2 * sum(name.endswith("attn2") for name, _ in unet.named_modules()) > 0
    with Projections() as projections:
        denoise(unet, scheduler_of(prediction="v_prediction"), *inputs(3), SCALE, STEPS, rules)
    assert {projections.count[id(layer.weight)] for layer in layers} == {times}
    others = [
        layer.weight for layer in unet.modules() if type(layer) is torch.nn.Linear and layer not in layers
    ]
    assert {projections.count[id(weight)] for weight in others} == {STEPS}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_text_that_changes_is_seen(unet: torch.nn.Module, in_place: bool) -> None:
    latents, unconditional, conditional = inputs(3)
    start = conditional * 2 if in_place else conditional
    scheduler = scheduler_of(prediction="v_prediction")
    result = denoise(unet, scheduler, latents, unconditional, start, SCALE, STEPS, [Fading(in_place)])
    x = latents * scheduler.init_noise_sigma
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for index, t in enumerate(scheduler.timesteps):
            text = torch.cat([unconditional, conditional * 0.5**index])
            u, c = unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
            x = scheduler.step(u + SCALE * (c - u), t, x).prev_sample
    assert torch.allclose(result.latents, x, atol=1e-4)


def test_the_unet_is_as_before_afterwards(unet: torch.nn.Module) -> None:
    """Also within another block, and after an error."""
    layers = text_layers(unet)
    text = torch.randn(2, 4, layers[0].in_features)
    with pytest.raises(KeyError), projected_once(unet), torch.no_grad():
        first = layers[0](text)
        with projected_once(unet):
            assert layers[0](text) is first
        assert layers[0](text) is first and layers[0](text.clone()) is not first
        raise KeyError
    assert not any("forward" in vars(layer) for layer in layers)


def test_gradients_reach_the_text(unet: torch.nn.Module) -> None:
    """A text that is optimized in place stays the same tensor."""
    layer = text_layers(unet)[0]
    text = torch.randn(2, 4, layer.in_features, requires_grad=True)
    with projected_once(unet):
        for _ in range(2):
            layer(text).sum().backward()
            with torch.no_grad():
                text -= 1
    expected = 2 * layer.weight.detach().sum(0)
    assert torch.allclose(text.grad, expected.expand_as(text), atol=1e-5)


def test_a_compiled_unet_is_left_alone(unet: torch.nn.Module) -> None:
    """What was compiled has its forward already."""
    assert text_layers(torch.compile(unet)) == [] and text_layers(lambda x: x) == []


def test_two_runs_of_one_model_do_not_share_texts(unet: torch.nn.Module) -> None:
    scheduler = scheduler_of(prediction="v_prediction")

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        return u + SCALE * (c - u)

    for rows in (slice(0, 2), slice(2, 4)):
        result = denoise(unet, scheduler, *inputs(4, rows), SCALE, STEPS)
        expected = by_hand(unet, scheduler, inputs(4, rows), STEPS, guide)[-1]
        assert torch.allclose(result.latents, expected, atol=1e-4)
