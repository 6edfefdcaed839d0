"""The code of callbacks/README.md runs."""

import re
from typing import Any

import pytest
import torch

from infer.denoising.loop import denoise
from tests.callbacks.adapters.families import quiet
from tests.conftest import ROOT, random_pipeline
from tests.infer.denoising.loops import inputs, scheduler_of

pytestmark = pytest.mark.usefixtures("one_thread")
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "callbacks/README.md").read_text(), re.DOTALL)


def test_the_mitigation_of_the_page(unet: torch.nn.Module) -> None:
    names: dict[str, Any] = {}
    exec(SNIPPETS[0], names)
    rule = names["Interval"](low=300)
    run = denoise(unet, scheduler_of(prediction="v_prediction"), *inputs(2), 7.5, 10, [rule])
    assert run.guidance_scale[0].tolist() == [1, 1, 1, 7.5, 7.5, 7.5, 7.5, 1, 1, 1]
    assert run.nfe.tolist() == [14, 14]
    assert rule.identity()["init_args"] == {"low": 300, "high": 700}


def test_the_pipelines_of_the_page(capsys: pytest.CaptureFixture) -> None:
    names: dict[str, Any] = {"pipe": quiet(random_pipeline())}
    exec(SNIPPETS[1], names)
    assert names["image"].size == (16, 16) and "tensor([30])" in capsys.readouterr().out
    exec(SNIPPETS[2], names)
    assert names["guider"].rule.timestep == 500
