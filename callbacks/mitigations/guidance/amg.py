"""AMG: guidance away from the nearest training image while the image resembles it."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from torch import Tensor

from callbacks.mitigations.guidance.ordinary_guidance import OrdinaryGuidance, per_sample, predict
from callbacks.mitigations.guidance.training_index import TrainingIndex
from data.files import digest
from data.prompts.fingerprint import source_fingerprint
from data.sources.layouts import open_source
from infer.denoising.guidance import onto
from infer.denoising.hooks import Batch, DenoisingStep, Request
from infer.denoising.sampling import embed
from infer.metrics.sscd import ProtocolName, check_sscd
from infer.models.pipeline import fingerprint, training_run_of
from infer.options import provenance_of


def threshold(timestep: float) -> float:
    """lambda_t = a - (a - b) exp(-c t) with a = 0.3, b = 0.4, c = 0.005: 0.3 in noise, 0.4 at the end."""
    return 0.3 + 0.1 * math.exp(-0.005 * timestep)


def scales(similarity: Tensor, s: float, c1: float, c2: float) -> tuple[Tensor, Tensor]:
    """s_1 = max(min(c1 sim, s - 1), 0) and s_2 = max(min(c2 sim, s - s_1 - 1), 0), (B,) each."""
    first = (c1 * similarity).clamp(max=s - 1).clamp(min=0)
    second = torch.minimum(c2 * similarity, s - first - 1).clamp(min=0)
    return first, second


class AMG(OrdinaryGuidance):
    """Less guidance, and guidance off the nearest training image and its caption, while they look alike.

    Chen et al., CVPR 2024 (arXiv:2404.00922): despecification, caption deduplication, dissimilarity. With
    sim, the similarity of the decoded x_0 of eps = u + s (c - u) to its nearest training image, eps becomes,
    wherever sim > lambda_t (`threshold`):

    eps - s_1 (c - u) - s_2 (n - u) + c3 w sigma_t grad_x sim, s_1 and s_2 as in `scales`

    n is the prediction for the nearest image's caption; the gradient goes through decoder and descriptor with
    eps held fixed, and w = (sim - 0.3) exp((1000 - t) / ramp), both as in the released code (the paper: w =
    1). The training set itself is searched, in place of their web service, which is gone; they take captions
    that more than 20 of 1000 neighbours share, here the nearest one's counts. One evaluation more a step for
    a sample above the threshold; each step also decodes.

    Args:
        training: sources of the training images, as training takes them; null: what the model was trained on,
            by the training run folder that its pipeline lies in (without the ordinary images).
        sscd: SSCD model (.pt TorchScript), disc_mixup or disc_large; null: local correlation of 32x32 RGB.
        sscd_protocol: how images are prepared for SSCD.
        despecification: c1.
        deduplication: c2.
        dissimilarity: c3.
        ramp_timesteps: of w; null: w = 1.
        cache: folder for the embeddings of training images.
    """

    def __init__(
        self,
        training: str | list[str] | None = None,
        sscd: str | None = None,
        sscd_protocol: ProtocolName = "skew320",
        despecification: NonNegativeFloat = 13.0,
        deduplication: NonNegativeFloat = 21.7,
        dissimilarity: NonNegativeFloat = 100.0,
        ramp_timesteps: PositiveFloat | None = 170.0,
        cache: str | None = "outputs/cache/embeddings",
    ):
        check_sscd(sscd, protocol=sscd_protocol)
        self.training = [training] if isinstance(training, str) else training
        self.sscd, self.sscd_protocol = sscd, sscd_protocol
        self.despecification, self.deduplication = despecification, deduplication
        self.dissimilarity, self.ramp_timesteps, self.cache = dissimilarity, ramp_timesteps, cache
        self.forget()

    def forget(self) -> None:
        """Release the index and the pipeline."""
        self._index: TrainingIndex | None = None
        self._pipe = self._batch = None

    def contents(self) -> dict[str, str | None]:
        training = digest(*map(source_fingerprint, self.training or []))[:12]
        return {"training": training, "sscd": self.sscd and fingerprint(self.sscd)}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Know the training images before the run folder records them."""
        pl_module.load()
        self.find_training(pl_module.pipe)

    def find_training(self, pipe: Any) -> None:
        """ValueError where the training images are not given, and the pipeline is in no training run."""
        if self.training is not None:
            return
        if (run := training_run_of(pipe)) is None:
            raise ValueError(
                "AMG searches the training images, and this pipeline lies in no training run folder, which "
                "would name them: give --mitigation.training"
            )
        self.training = provenance_of(run)["sources"]

    def check_requests(self, pipe: Any, requests: Sequence[Request]) -> None:
        """FileNotFoundError for a missing source; none is downloaded."""
        self.find_training(pipe)
        for source in self.training:
            if not source.startswith("hf:"):
                open_source(source, Counter())

    def load(self, pipe: Any, resolution: int, device: torch.device) -> None:
        """The index, once."""
        if self._index is None:
            options = self.sscd, self.sscd_protocol, self.cache
            self._index = TrainingIndex.of(self.training, resolution, device, *options)

    def on_predict_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        resolution = pl_module.model.resolution_of(pl_module.pipe)
        self.load(pl_module.pipe, resolution, pl_module.device)  # before the first image's seconds

    def prepare(self, pipe: Any, requests: Sequence[Request], device: torch.device) -> None:
        self._pipe = pipe

    def before_denoising(self, batch: Batch) -> None:
        self._batch = batch
        self.load(self._pipe, batch.noise.shape[-1] * self._pipe.vae_scale_factor, batch.noise.device)

    def image(self, step: DenoisingStep, latents: Tensor, epsilon: Tensor) -> Tensor:
        """The decoded x_0 = (x - sigma eps) / alpha, in 0..1, (B, 3, H, W)."""
        vae = self._pipe.vae
        clean = (latents - step.sigma * epsilon) / step.alpha / vae.config.scaling_factor
        decoded = vae.decode(clean.to(vae.dtype), return_dict=False)[0]
        return self._pipe.image_processor.denormalize(decoded.float())

    def combine(self, step: DenoisingStep, prediction: Tensor) -> Tensor:
        rows = self.own_rows(step)
        if step.alpha == 0 or not len(rows):
            return prediction
        index, x = onto(rows, prediction.device), step.latents.float()
        epsilon = step.epsilon(prediction.float())
        found = self._index.nearest(self.image(step, x[index], epsilon[index]))
        above = (found.top > threshold(step.timestep)).cpu()  # never where it is undefined
        if not above.any():
            return prediction
        rows, kept = rows[above], onto(above.nonzero()[:, 0], index.device)
        index, similarity, nearest = index[kept], found.top[kept], found.top_index[kept]
        self._batch.nfe[rows] += 1
        u, c = step.unconditional[index].float(), step.conditional[index].float()
        n = self.caption_prediction(step, index, nearest).float()
        s1, s2 = scales(similarity, step.guidance_scale, self.despecification, self.deduplication)
        change = -per_sample(s1, u) * (c - u) - per_sample(s2, u) * (n - u)
        weight = self.dissimilarity * step.sigma
        if self.ramp_timesteps is not None:
            weight = weight * (similarity - 0.3) * math.exp((1000 - step.timestep) / self.ramp_timesteps)
            weight = per_sample(weight, u)
        towards = weight * self.gradient(step, x[index], epsilon[index], nearest)
        change += towards if step.prediction_type == "epsilon" else towards / step.alpha
        return prediction.index_add(0, index, change.to(prediction.dtype))

    def caption_prediction(self, step: DenoisingStep, index: Tensor, nearest: Tensor) -> Tensor:
        """The model's output for the captions of the nearest images."""
        texts = [self._index.captions[number] for number in nearest.tolist()]
        embedding = embed(self._pipe, texts, index.device).to(step.latents.dtype)
        return predict(self._batch.unet, step.latents[index], step, embedding)

    def gradient(self, step: DenoisingStep, x: Tensor, epsilon: Tensor, nearest: Tensor) -> Tensor:
        """grad_x of the similarity to the nearest images, row by row; no gradient goes through the UNet."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            similarity = self._index.similarity(self.image(step, x, epsilon), nearest)
            return torch.autograd.grad(similarity.sum(), x)[0]
