"""AMG: nothing below its threshold, its formula above it, and its index of the training images."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from callbacks.mitigations.guidance.amg import AMG, scales, threshold
from callbacks.mitigations.guidance.training_index import TrainingIndex, correlate, prepared
from infer.__main__ import main
from infer.denoising.noise import initial_noise
from infer.denoising.sampling import embed, make_images
from infer.metrics.similarity import pixel_descriptor
from infer.metrics.sscd import PROTOCOLS
from tests.callbacks.mitigations.peer_runs import CPU, SCALE, STEPS, assert_rows_are_independent, run
from tests.conftest import CAPTIONS
from tests.infer.denoising.loops import by_hand, requests
from tests.infer.predict.runs import command
from tests.infer.training_runs import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(pipe) -> list[Image.Image]:
    """Those that the model makes without mitigation."""
    return make_images(pipe, CPU, requests(3), 16, SCALE, STEPS)[0]


@pytest.fixture(scope="module")
def copied(images: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A training set of them, under other captions."""
    folder = tmp_path_factory.mktemp("copied")
    for number, image in enumerate(images):
        image.save(folder / f"s{number}.png")
        (folder / f"s{number}.txt").write_text(CAPTIONS[5 + number])
    return str(folder)


@pytest.fixture(scope="module")
def pixels(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255


def around(images: Tensor) -> Tensor:
    """Sums over 11x11 px, as far as the image goes."""
    return F.conv2d(images, torch.ones(3, 1, 11, 11), padding=5, groups=3)


def test_the_scales_leave_at_least_the_conditional_prediction() -> None:
    """s_1 + s_2 <= s - 1; both grow with the similarity."""
    first, second = scales(torch.tensor([0.0, 0.1, 0.5, 0.9]), 7.5, 13.0, 21.7)
    assert torch.allclose(first, torch.tensor([0.0, 1.3, 6.5, 6.5]))
    assert torch.allclose(second, torch.tensor([0.0, 2.17, 0.0, 0.0]))
    assert scales(torch.tensor([0.5]), 0.5, 13.0, 21.7)[0].item() == 0  # nothing to take off
    assert [round(threshold(t), 3) for t in (0, 1000)] == [0.4, 0.301]


def test_below_the_threshold_its_terms_vanish(pipe, tiny_shards: Path) -> None:
    """Training images of noise: nothing resembles them."""
    result, plain = run(pipe, AMG([str(tiny_shards)], cache=None)), run(pipe)
    assert torch.equal(result.latents, plain.latents) and result.nfe.tolist() == plain.nfe.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("ramp", [170.0, None])
def test_above_it_its_formula(pipe, copied: str, prediction: str, ramp: float | None) -> None:
    """By hand, in epsilon space, with the images' correlation written out."""
    pipe.scheduler.register_to_config(prediction_type=prediction)
    noise = initial_noise([request.seed for request in requests(2)], (4, 8, 8), torch.float32)[0]
    given = noise, *(embed(pipe, texts, CPU) for texts in (["", ""], CAPTIONS[:2]))
    rule = AMG([copied], dissimilarity=0.5, ramp_timesteps=ramp, cache=None)
    rule.load(pipe, 16, CPU)
    references, above = rule._index.descriptors.embeddings, []
    latents: list[Tensor] = []

    def network(x: Tensor, t: Tensor, **options: Any) -> tuple[Tensor]:
        latents.append(x)
        return pipe.unet(x, t, **options)

    def guide(index: int, t: float, u: Tensor, c: Tensor) -> Tensor:
        kept, x = float(pipe.scheduler.alphas_cumprod[int(t)]), latents[-1]
        alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
        e = [o if prediction == "epsilon" else alpha * o + sigma * x for o in (u, c)]
        mixed = e[0] + SCALE * (e[1] - e[0])
        with torch.enable_grad():
            y = x.clone().requires_grad_()
            z = (y - sigma * mixed) / alpha / pipe.vae.config.scaling_factor
            image = (pipe.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
            small = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
            flat = (small - around(small) / around(torch.ones_like(small))).flatten(1)
            flat = flat - flat.mean(1, keepdim=True)
            cosines = flat / flat.norm(dim=1, keepdim=True) @ references.T
            sim, nearest = cosines.max(1)
            (gradient,) = torch.autograd.grad(sim.sum(), y)
        for row in range(len(x)):
            if sim[row] <= 0.3 + 0.1 * math.exp(-0.005 * t):
                continue
            above.append(index)
            other = embed(pipe, [CAPTIONS[5 + int(nearest[row])]], CPU)
            n = pipe.unet(x[row : row + 1], t, encoder_hidden_states=other).sample[0]
            n = n if prediction == "epsilon" else alpha * n + sigma * x[row]
            s1 = max(min(13 * sim[row], SCALE - 1), 0)
            s2 = max(min(21.7 * sim[row], SCALE - s1 - 1), 0)
            w = 1 if ramp is None else (sim[row] - 0.3) * math.exp((1000 - t) / ramp)
            mixed[row] += -s1 * (e[1] - e[0])[row] - s2 * (n - e[0][row]) + 0.5 * w * sigma * gradient[row]
        return mixed if prediction == "epsilon" else (mixed - sigma * latents[-1]) / alpha

    expected = by_hand(network, pipe.scheduler, given, STEPS, lambda *a: guide(*a).detach())
    result = run(pipe, rule, count=2)
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    assert torch.allclose(result.latents, expected[-1], atol=5e-3, rtol=1e-2)
    assert above and result.nfe.sum() == 2 * 2 * STEPS + len(above)


def test_the_images_leave_their_training_images(pipe, copied: str) -> None:
    rule = AMG([copied], dissimilarity=1.0, cache=None)
    images, _ = make_images(pipe, CPU, requests(3), 16, SCALE, STEPS, rules=[rule])
    similarity = (pixel_descriptor(images) * rule._index.descriptors.embeddings).sum(1)
    assert similarity.mean() < 0.9
    rule.teardown(None, None, "predict")
    assert rule._index is None and rule._pipe is None and rule._batch is None


def test_rows_are_independent(pipe, copied: str) -> None:
    result = assert_rows_are_independent(pipe, lambda: [AMG([copied], dissimilarity=1.0, cache=None)])
    assert (result.nfe > 2 * STEPS).all() and not result.gradient_passes.any()  # none through the UNet


def test_images_in_memory_have_the_embeddings_of_files(images: list[Image.Image], pixels: Tensor) -> None:
    """The correlation, and the copy detector's preparation."""
    assert torch.allclose(correlate(pixels), pixel_descriptor(images), atol=1e-3)
    assert correlate(torch.full((1, 3, 16, 16), 0.5)).isnan().all()
    for protocol in PROTOCOLS.values():
        expected = protocol(images)
        assert prepared(protocol, pixels).shape == expected.shape
        assert (prepared(protocol, pixels) - expected).abs().mean() < 0.02


class Averages(torch.nn.Module):
    """Stands for SSCD: 7x7 averages of what it is shown."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 7).flatten(1)


def test_the_copy_detector_finds_and_has_a_gradient(copied: str, pixels: Tensor, tmp_path: Path) -> None:
    """A TorchScript file, by the protocols of files; ONNX has no gradient and is refused."""
    path = tmp_path / "detector.pt"
    torch.jit.save(torch.jit.script(Averages()), str(path))
    index = TrainingIndex.of([copied], 16, CPU, str(path), "dcr")
    x, found = pixels.clone().requires_grad_(), index.nearest(pixels)
    assert found.top_index.tolist() == [0, 1, 2] and (found.top > 0.999).all()
    (gradient,) = torch.autograd.grad(index.similarity(x, found.top_index.flip(0)).sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    (tmp_path / "detector.onnx").touch()
    with pytest.raises(ValueError, match="give a TorchScript file"):
        TrainingIndex.of([copied], 16, CPU, str(tmp_path / "detector.onnx"))


def test_images_of_one_colour_are_no_training_images(copied: str, images: list, tmp_path: Path) -> None:
    """The others keep their captions; an image of one colour has no nearest one."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red square")
    index = TrainingIndex.of([str(tmp_path), copied], 16, CPU)
    assert index.captions == CAPTIONS[5:8] and len(index.descriptors.embeddings) == 3
    assert index.nearest(torch.full((1, 3, 16, 16), 0.5)).top.isnan().all()


def test_a_training_set_that_is_not_there_is_named_before_the_first_run(pipe) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.tar"):
        AMG(["nothing.tar"]).check_requests(pipe, requests(1))


def test_training_images_are_those_of_the_run_of_the_model(
    copied: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Recorded in the run folder; a model that lies in no training run has none."""
    model = save_model(tmp_path / "trained/pipeline")
    given = ["--prompt", "red square", "--mitigation", "amg", "--mitigation.cache", "null"]
    options = command(model, tmp_path / "out", STEPS, *given)
    assert main(options) == 1 and "lies in no training run folder" in capsys.readouterr().err
    (model.parent / "provenance.json").write_text(json.dumps({"sources": [copied], "ordinary": ["other"]}))
    assert main(options) == 0
    [recorded] = yaml.safe_load((tmp_path / "out/config.yaml").read_text())["mitigations"]
    assert recorded["init_args"]["training"] == [copied]
