"""The registry of the detectors, and those that read the curves of a run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infer.plotting import DIFFERENCE

GUIDED, UNGUIDED, NOISE, GRADIENT = "guided run", "unguided run", "noise alone", "noise and gradients"


class Detector(NamedTuple):
    """Where its score comes from, what it costs alone, and how a figure names it and the score.

    `evaluations` of the UNet and `gradients`, rows of those that are differentiated too, are for one noise:
    a number of rows, and further rows for each step of a run.
    """

    run: str
    title: str
    xlabel: str
    rows: int = 0
    rows_per_step: int = 0
    gradients: int = 0

    def evaluations(self, steps: int) -> int:
        return self.rows + self.rows_per_step * steps


DETECTORS = {
    "first_step": Detector(GUIDED, "Difference, first step", DIFFERENCE, rows=2),
    "all_steps": Detector(GUIDED, "Difference, all steps", f"{DIFFERENCE}, mean", rows_per_step=2),
    "dsm_01": Detector(GUIDED, "Change, 1st to 2nd step", "squared change of the prediction", rows=3),
    "dsm_12": Detector(GUIDED, "Change, 2nd to 3rd step", "squared change of the prediction", rows=5),
    "fall": Detector(
        UNGUIDED, "Fall to the first minimum", "share of the highest difference", rows_per_step=2
    ),
    "attention_d": Detector(GUIDED, "Attention entropy D", "entropy and its change (nats)", rows_per_step=2),
    "attention_e": Detector(GUIDED, "Attention entropy E", "entropy (nats)", rows=1),
    "alignment": Detector(NOISE, "Alignment at low noise", "cosine by location, mean", rows=2),
    "anisotropy": Detector(NOISE, "Anisotropy", "cosine + norm of the difference", rows=4),
    "agreement": Detector(NOISE, "Agreement of first guesses", "cosine of the differences", rows=16),
    "sharpness": Detector(GRADIENT, "Sharpness", "squared change along the score", rows=4, gradients=2),
    "hessian": Detector(
        GRADIENT, "Decoupled Hessian", "squared difference of gradients", rows=2, gradients=2
    ),
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
