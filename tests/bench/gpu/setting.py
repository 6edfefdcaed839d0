"""The sizes of a run, and the model that it is of: Stable Diffusion 2.1's shapes, random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infer.models.weights import quiet_bars
from tests.bench.rows import Setting as RowSetting
from tests.conftest import CAPTIONS, random_pipeline
from tests.train.plan.test_plan import SD21

SIDE, FACTOR = 256, 8  # px of an image, and of it in a latent's pixel


@dataclass(frozen=True)
class Setting:
    """What all parts are run with.

    Args:
        folder: for the model, its cache and the fits; deleted at the end.
        tiny: a model of 16 px on the CPU.
        device: cuda or cpu.
        batch_size: images of a training step, and of a batch that is sampled.
        num_inference_steps: of a sampled image.
        warm: training steps that are not timed.
        steps: training steps that are timed, at most.
        rounds: how often each way of sampling is timed, at most.
        matmul: rows and columns of the matrices that measure the peak.
        backend: of torch.compile.
    """

    folder: Path
    tiny: bool = False
    device: str = "cuda"
    batch_size: int = 16
    num_inference_steps: int = 50
    warm: int = 5
    steps: int = 100
    rounds: int = 5
    matmul: int = 8192
    backend: str = "inductor"
    dtype: torch.dtype = torch.bfloat16

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def rows(self) -> RowSetting:
        """The same for the rows of `tests.bench`."""
        return RowSetting(self.folder, self.model, self.device, self.dtype, self.num_inference_steps)


def setting_of(folder: Path, tiny: bool, batch_size: int) -> Setting:
    if not tiny:
        return Setting(folder, batch_size=batch_size)
    return Setting(
        folder, tiny, "cpu", batch_size=2, num_inference_steps=3, warm=1, steps=1, rounds=1, matmul=64,
        backend="eager",
    )  # fmt: skip


def sd21(device: str) -> Any:
    """StableDiffusionPipeline of SD 2.1's shapes for 256 px, in 16 bits; the weights are drawn on the device.

    Only modules are made there: a scheduler's numbers and a tokenizer stay on the CPU.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from train.base_model.clip import train_tokenizer

    tokens = {"hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**SD21["unet"] | {"sample_size": SIDE // FACTOR}).half()
        vae = AutoencoderKL(**SD21["vae"]).half()
        text_encoder = CLIPTextModel(CLIPTextConfig(**SD21["text_encoder"], **tokens)).half()
    return StableDiffusionPipeline(
        unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=train_tokenizer(CAPTIONS, 600, 77),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def write_model(setting: Setting) -> None:
    """The model as a diffusers folder, which every part loads as a user's model is loaded."""
    with quiet_bars():
        pipe = random_pipeline() if setting.tiny else sd21(setting.device)
        pipe.save_pretrained(setting.model)
