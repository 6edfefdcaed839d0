"""One seed per (base seed, prompt, sample): the noise depends on neither batch nor rank."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def sample_seed(base_seed: int, prompt_id: str, sample: int) -> int:
    """63 bits of SHA-256 of the three; what the `seed` column holds."""
    digest = hashlib.sha256(f"{base_seed}/{prompt_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def standard_normal(
    generators: Sequence[Generator], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers of each sample's own CPU generator, (B, *shape), as stock diffusers draws them."""
    return torch.stack([torch.randn(shape, generator=generator, dtype=dtype) for generator in generators])


def initial_noise(
    seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, list[Generator]]:
    """What stock diffusers draws for each seed on the CPU, (B, *shape); the generators after that draw."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return standard_normal(generators, shape, dtype), generators
