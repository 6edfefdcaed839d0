"""A base model from nothing: an untrained UNet around an autoencoder and a CLIP that this project trained."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from infer.models.pipeline import pipeline_class
from train.finetune import Finetune


class BaseTraining(Finetune):
    """Finetune's training on a pipeline that is put together here.

    Args:
        autoencoder: folder with `vae/`, as train.base_model.autoencoder exports it.
        clip: folder with `text_encoder/` and `tokenizer/`, as train.base_model.clip exports it.
        unet: keyword arguments of diffusers' UNet2DConditionModel.
        scheduler: keyword arguments of diffusers' DDIMScheduler.
        kwargs: of train.finetune.Finetune, without `pipeline`.
    """

    def __init__(
        self, autoencoder: str, clip: str, unet: dict[str, Any], scheduler: dict[str, Any], **kwargs: Any
    ):
        super().__init__(pipeline="", **kwargs)
        if self.lora_rank:
            raise ValueError("model.lora_rank changes a trained model, and a base model is untrained")
        self.parts = (Path(autoencoder), Path(clip), unet, scheduler)

    def load_pipeline(self) -> Any:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        autoencoder, clip, unet, scheduler = self.parts
        vae = AutoencoderKL.from_pretrained(autoencoder / "vae", use_safetensors=True)
        text_encoder = CLIPTextModel.from_pretrained(clip / "text_encoder", use_safetensors=True)
        channels = vae.config.latent_channels
        return pipeline_class()(
            vae=vae.float(),
            text_encoder=text_encoder.float(),
            tokenizer=CLIPTokenizer.from_pretrained(clip / "tokenizer"),
            unet=UNet2DConditionModel(
                in_channels=channels,
                out_channels=channels,
                **unet,
                cross_attention_dim=text_encoder.config.hidden_size,
            ),  # fmt: skip
            scheduler=DDIMScheduler(**scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def export(self, folder: Path) -> None:
        """The pipeline, UNet and autoencoder in 16 bits: this is what is committed.

        Not the text encoder: transformers would load it in 16 bits, diffusers loads the others in 32.
        """
        super().export(folder)
        for name in ("unet", "vae"):
            deepcopy(getattr(self.pipe, name)).half().save_pretrained(folder / name)
