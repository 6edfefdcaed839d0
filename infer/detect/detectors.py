"""Detectors of memorized prompts that read the curves of a run; and the registry of all detectors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Detector(NamedTuple):
    """What a detector needs, and how a figure names it and its score."""

    needs: str
    title: str
    xlabel: str


DETECTORS = {
    "first_step": Detector("1 step", "Difference, first step", "RMS(conditional − unconditional)"),
    "all_steps": Detector("guided run", "Difference, all steps", "RMS(conditional − unconditional), mean"),
    "fall": Detector("unguided run", "Fall to the first minimum", "share of the highest difference"),
    "attention_d": Detector("guided run", "Attention entropy D", "entropy and its change (nats)"),
    "attention_e": Detector("1 step", "Attention entropy E", "entropy (nats)"),
}


def first_step(curves: np.ndarray) -> np.ndarray:
    """Wen et al. (ICLR 2024, arXiv:2407.21720) at one step: d_T, (N,); needs the first step only.

    d_t = RMS(eps(x_t, prompt) - eps(x_t, empty prompt)), the L2 norm over a constant; `curves`, (N, steps),
    come from the run with guidance. A prompt's own negative prompt replaces the empty one.
    """
    return np.asarray(curves, float)[:, 0]


def all_steps(curves: np.ndarray) -> np.ndarray:
    """Wen et al. (ICLR 2024, arXiv:2407.21720): mean of d_t over the run with guidance, (N,)."""
    return np.asarray(curves, float).mean(1)


def fall(curves: np.ndarray, timesteps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """How far d_t falls to its first local minimum, and the timestep at which that shows; each (N,).

    The dynamic transition of Jain et al. (CVPR 2025) watches the same in the run without guidance: it fires
    at the first step i with d[i-2] > d[i-1] < d[i]. The fall is (h - d[i-1]) / h, h being the highest d
    before the minimum. Without a minimum it is 0, and the timestep NaN. A repeated timestep counts once.

    Args:
        curves: d_t, (N, steps).
        timesteps: of the steps.
    """
    t = np.asarray(timesteps, float)
    distinct = np.append(True, t[1:] != t[:-1])
    d, t = np.asarray(curves, float)[:, distinct], t[distinct]
    minima = (d[:, :-2] > d[:, 1:-1]) & (d[:, 2:] > d[:, 1:-1])
    any_minimum, before, rows = minima.any(1), minima.argmax(1), np.arange(len(d))
    highest = np.maximum.accumulate(d, 1)[rows, before]
    depth = 1 - d[rows, before + 1] / np.where(any_minimum, highest, 1)
    return np.where(any_minimum, depth, 0.0), np.where(any_minimum, t[before + 2], np.nan)
