"""Tiny random pipelines of other model families: classic and modular SDXL, modular SD3, FLUX.2 klein base.

They are built from configs: nothing is downloaded. The modular pipelines of FLUX.1 and FLUX.2 dev have no
guider: their models are distilled. Beside each modular pipeline stands its denoising written out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.conftest import CAPTIONS

PROMPTS = ["red square", "old map"]
SMALL_UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}
SMALL_VAE = {
    "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "norm_num_groups": 4,
    "sample_size": 16,
}  # fmt: skip


@dataclass
class Family:
    """A modular pipeline with a guider, and the same denoising written out.

    Attributes:
        pipe: the modular pipeline, all components set.
        denoiser: name of the component that predicts.
        prediction_type: what it predicts.
        noise_shape: of one sample, as the pipeline takes `latents`.
        options: further inputs of a call.
        start: (pipe, noise) -> the latents before the first step.
        predict: (pipe, state, latents, index, conditional) -> what the model says about them.
    """

    pipe: Any
    denoiser: str
    prediction_type: str
    noise_shape: tuple[int, ...]
    options: dict[str, Any]
    start: Callable[[Any, Tensor], Tensor]
    predict: Callable[[Any, Any, Tensor, int, bool], Tensor]

    def noise(self, seeds: list[int]) -> Tensor:
        draw = [
            torch.randn(self.noise_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds
        ]
        return torch.stack(draw)

    def run(
        self, guider: Any, steps: int = 4, prompts: list[str] = PROMPTS, noise: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The latents after the last step, and the pipeline's state."""
        self.pipe.update_components(guider=guider)
        noise = self.noise(list(range(len(prompts)))) if noise is None else noise
        state = self.pipe(
            prompt=list(prompts), num_inference_steps=steps, latents=noise, output_type="pt", **self.options
        )
        return state.get("latents").flatten(2).transpose(1, 2), state

    @torch.no_grad()
    def written_out(
        self, state: Any, noise: Tensor, scale: Callable[[int, float, Tensor, Tensor], Tensor | float],
    ) -> Tensor:  # fmt: skip
        """Euler steps with u + s (c - u), both predictions at every step: the latents as `run` returns them.

        Args:
            state: of a run with a guider that wants both predictions: its embeddings and timesteps.
            noise: what the run was given as `latents`.
            scale: (index, timestep, u, c) -> s, a number or (B,).
        """
        sigmas = self.pipe.scheduler.sigmas
        latents = self.start(self.pipe, noise)
        for index, timestep in enumerate(state.get("timesteps")):
            unconditional = self.predict(self.pipe, state, latents, index, False)
            conditional = self.predict(self.pipe, state, latents, index, True)
            s = scale(index, float(timestep), unconditional, conditional)
            s = torch.as_tensor(s).view(-1, *[1] * (latents.ndim - 1))
            guided = unconditional + s * (conditional - unconditional)
            latents = latents + (sigmas[index + 1] - sigmas[index]) * guided
        return latents if latents.ndim == 3 else latents.flatten(2).transpose(1, 2)


def clip_tokenizer() -> Any:
    from train.base_model.clip import train_tokenizer

    return train_tokenizer(CAPTIONS, 600, 8)


def clip_text_encoder(tokenizer: Any, projected: bool) -> Any:
    """Random; 32 wide, two layers, for the pipelines read the last but one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, projection_dim=32,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def qwen_tokenizer() -> Any:
    """Byte-level BPE with a chat template, as the Qwen text encoders want it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CAPTIONS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
    )  # fmt: skip


def quiet(pipe: Any) -> Any:
    """Without a progress bar, in eval mode."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl_components() -> dict[str, Any]:
    """Of both SDXL pipelines: 16 px images, 8x8x4 latents, 8 tokens."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        **SMALL_UNET, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64, attention_head_dim=16,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    with torch.no_grad():  # so that its differences go up and down with the timestep
        unet.time_embedding.linear_1.weight *= 10
        unet.time_embedding.linear_2.weight *= 3
    return {
        "vae": AutoencoderKL(**SMALL_VAE),
        "text_encoder": clip_text_encoder(tokenizer, projected=False),
        "text_encoder_2": clip_text_encoder(tokenizer, projected=True),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": unet,
        "scheduler": EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading",
            steps_offset=1,
        ),
    }  # fmt: skip


def classic_sdxl() -> Any:
    from diffusers import StableDiffusionXLPipeline

    return quiet(StableDiffusionXLPipeline(**sdxl_components(), add_watermarker=False))


def modular_sdxl() -> Family:
    from diffusers import StableDiffusionXLAutoBlocks, StableDiffusionXLModularPipeline

    pipe = StableDiffusionXLModularPipeline(StableDiffusionXLAutoBlocks().get_workflow("text2image"))
    pipe.update_components(**sdxl_components())

    def predict(pipe: Any, state: Any, latents: Tensor, index: int, conditional: bool) -> Tensor:
        which = "" if conditional else "negative_"
        return pipe.unet(
            latents / (pipe.scheduler.sigmas[index] ** 2 + 1) ** 0.5,
            state.get("timesteps")[index],
            encoder_hidden_states=state.get(f"{which}prompt_embeds"),
            added_cond_kwargs={
                "text_embeds": state.get(f"{which}pooled_prompt_embeds"),
                "time_ids": state.get(f"{which}add_time_ids"),
            },
            return_dict=False,
        )[0]

    return Family(
        quiet(pipe), "unet", "epsilon", (4, 8, 8), {"height": 16, "width": 16},
        lambda pipe, noise: noise * pipe.scheduler.init_noise_sigma, predict,
    )  # fmt: skip


def modular_sd3() -> Family:
    """Without the T5: the pipeline puts zeros there."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3AutoBlocks,
        StableDiffusion3ModularPipeline,
    )

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    pipe = StableDiffusion3ModularPipeline(StableDiffusion3AutoBlocks().get_workflow("text2image"))
    pipe.update_components(
        vae=AutoencoderKL(
            **SMALL_VAE, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5,
            shift_factor=0.06,
        ),
        text_encoder=clip_text_encoder(tokenizer, projected=True),
        text_encoder_2=clip_text_encoder(tokenizer, projected=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        transformer=SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=32,
            pooled_projection_dim=64, pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip

    def predict(pipe: Any, state: Any, latents: Tensor, index: int, conditional: bool) -> Tensor:
        which = "" if conditional else "negative_"
        return pipe.transformer(
            hidden_states=latents, timestep=state.get("timesteps")[index].expand(len(latents)),
            encoder_hidden_states=state.get(f"{which}prompt_embeds"),
            pooled_projections=state.get(f"{which}pooled_prompt_embeds"), return_dict=False,
        )[0]  # fmt: skip

    return Family(
        quiet(pipe), "transformer", "flow_prediction", (4, 8, 8),
        {"height": 16, "width": 16, "max_sequence_length": 8, "negative_prompt": ""},
        lambda pipe, noise: noise, predict,
    )  # fmt: skip


def modular_flux2() -> Family:
    """FLUX.2 klein base: latents are packed, (B, tokens, C)."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinBaseAutoBlocks,
        Flux2KleinBaseModularPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    pipe = Flux2KleinBaseModularPipeline(Flux2KleinBaseAutoBlocks().get_workflow("text2image"))
    pipe.update_components(
        vae=AutoencoderKLFlux2(**SMALL_VAE, layers_per_block=1),
        text_encoder=Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=32,
            )
        ),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )  # fmt: skip

    def start(pipe: Any, noise: Tensor) -> Tensor:
        return noise.flatten(2).transpose(1, 2)

    def predict(pipe: Any, state: Any, latents: Tensor, index: int, conditional: bool) -> Tensor:
        which = "" if conditional else "negative_"
        return pipe.transformer(
            hidden_states=latents, timestep=state.get("timesteps")[index].expand(len(latents)) / 1000,
            encoder_hidden_states=state.get(f"{which}prompt_embeds"), txt_ids=state.get(f"{which}txt_ids"),
            img_ids=state.get("latent_ids"), return_dict=False,
        )[0]  # fmt: skip

    return Family(
        quiet(pipe), "transformer", "flow_prediction", (16, 4, 4),
        {"height": 16, "width": 16, "max_sequence_length": 16, "text_encoder_out_layers": (1, 2)}, start,
        predict,
    )  # fmt: skip


MODULAR: dict[str, Callable[[], Family]] = {"sdxl": modular_sdxl, "sd3": modular_sd3, "flux2": modular_flux2}


@cache
def built(name: str) -> Family:
    """One for all tests: a run sets its own guider."""
    return MODULAR[name]()
