"""What the tests of the detour share: batches under one rule."""

import torch

from infer.denoising.loop import Denoised
from infer.denoising.requests import Request
from infer.denoising.sampling import make_images

CPU, STEPS, SCALE, SWITCH = torch.device("cpu"), 10, 7.5, 500


def denoised(pipe, rule, requests: list[Request]) -> Denoised:
    return make_images(pipe, CPU, requests, 16, SCALE, STEPS, rules=[rule])[1]
