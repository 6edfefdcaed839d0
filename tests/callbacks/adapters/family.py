"""A tiny modular pipeline beside its denoising written out, and the parts that several families share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.conftest import CAPTIONS

PROMPTS = ["red square", "old map"]
SMALL_UNET = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 32), "norm_num_groups": 8}
SMALL_VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}


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
        self,
        state: Any,
        noise: Tensor,
        scale: Callable[[int, float, Tensor, Tensor], Tensor | float],
    ) -> Tensor:
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
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=32,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
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
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
    )


def quiet(pipe: Any) -> Any:
    """Without a progress bar, in eval mode."""
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe
