"""Detectors of memorized prompts, from the curves of a run."""

from collections.abc import Sequence

import numpy as np


def first_step(curves: np.ndarray) -> np.ndarray:
    """Wen et al. (ICLR 2024, arXiv:2407.21720) at one step: d_T, (N,); needs the first step only.

    d_t = RMS(eps(x_t, prompt) - eps(x_t, empty prompt)), the L2 norm over a constant; the rows of `curves`,
    (N, steps), from the run with guidance. A prompt's own negative prompt stands in for the empty one.
    """
    return np.asarray(curves, float)[:, 0]


def all_steps(curves: np.ndarray) -> np.ndarray:
    """Wen et al. (ICLR 2024, arXiv:2407.21720): mean of d_t over the run with guidance, (N,)."""
    return np.asarray(curves, float).mean(1)


def fall(curves: np.ndarray, timesteps: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """How far d_t falls to its first local minimum, and the timestep at which that shows; each (N,).

    What the dynamic transition of Jain et al. (CVPR 2025) watches, in the run without guidance: it fires at
    the first step i with d[i-2] > d[i-1] < d[i]. The fall is (h - d[i-1]) / h, h being the highest d before
    the minimum. 0, and NaN for the timestep, where there is none. A timestep that comes twice counts once.

    Args:
        curves: d_t, (N, steps).
        timesteps: of the steps.
    """
    t = np.asarray(timesteps, float)
    fresh = np.append(True, t[1:] != t[:-1])
    d, t = np.asarray(curves, float)[:, fresh], t[fresh]
    passed = (d[:, :-2] > d[:, 1:-1]) & (d[:, 2:] > d[:, 1:-1])
    found, before, rows = passed.any(1), passed.argmax(1), np.arange(len(d))
    highest = np.maximum.accumulate(d, 1)[rows, before]
    depth = 1 - d[rows, before + 1] / np.where(found, highest, 1)
    return np.where(found, depth, 0.0), np.where(found, t[before + 2], np.nan)
