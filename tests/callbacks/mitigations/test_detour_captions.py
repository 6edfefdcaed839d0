"""The detour over the nearest caption: which it is, in how much memory, and how long it is kept."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from callbacks.mitigations import caption_bank
from callbacks.mitigations.caption_bank import CaptionBank
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.static_transition import StaticTransition
from infer.models.pipeline import load_pipeline
from tests.callbacks.mitigations.detour_batches import CPU
from tests.conftest import CAPTIONS
from tests.infer.denoising.loops import requests
from tests.infer.training_runs import save_training_run

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_the_nearest_caption(pipe, tmp_path: Path) -> None:
    """By the cosine of pooled embeddings, in numpy; excluded by text, and by nearness to what is excluded."""
    ordinary = [
        "Red  SQUARE", "green square", "red circle", "cat", "map", "saucer", "cup of tea", "blue", "leaf",
    ]  # fmt: skip
    memorized = ["red square", "blue circle"]
    (tmp_path / "ordinary.txt").write_text("\n".join(ordinary))
    (tmp_path / "memorized.txt").write_text("\n".join(memorized))

    def unit(texts: list[str]) -> np.ndarray:
        tokens = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = pipe.text_encoder(tokens).pooler_output.double().numpy()
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    cosines = unit(ordinary[1:]) @ unit(memorized).T
    most = float(np.sort(cosines.max(1))[-2:].mean())  # between the nearest and the next: one is too near
    allowed = [t for t, nearest in zip(ordinary[1:], cosines.max(1), strict=True) if nearest <= most]
    assert len(allowed) == len(ordinary) - 2
    bank = CaptionBank.embed(
        pipe, CPU, str(tmp_path / "ordinary.txt"), str(tmp_path / "memorized.txt"), max_cosine=most
    )
    assert bank.texts == allowed
    expected = [allowed[i] for i in (unit(memorized) @ unit(allowed).T).argmax(1)]
    assert bank.nearest(memorized, 0.0, most) == expected
    assert bank.nearest(memorized, 0.999999, 1.0) == [None, None]
    others = [text for text in allowed if text != "cat"]  # itself is no alternative, the next one may be
    following = others[(unit(["cat"]) @ unit(others).T).argmax()]
    assert bank.nearest(["CAT ", "cat"], -1.0, 1.0) == [following] * 2
    assert CaptionBank(pipe, CPU, ["cat"], bank.embeddings[:1]).nearest(["CAT "], -1.0, 1.0) == [None]
    with pytest.raises(ValueError, match="no caption that .* does not exclude"):
        CaptionBank.embed(pipe, CPU, str(tmp_path / "memorized.txt"), str(tmp_path / "memorized.txt"), 1.0)


def test_a_caption_that_differs_in_case_only_does_not_hide_the_next(pipe, tmp_path: Path) -> None:
    """Nor do several of them."""
    (tmp_path / "captions.txt").write_text("Red Square\nRED  square\nold map")
    bank = CaptionBank.embed(pipe, CPU, str(tmp_path / "captions.txt"), None, 1.0)
    assert bank.texts == ["Red Square", "old map"]
    assert bank.nearest(["red square", "sun"], -1.0, 1.0)[0] == "old map"


class Products(TorchFunctionMode):
    """Notes the sizes of matrix products."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in (Tensor.matmul, Tensor.__matmul__, torch.matmul):
            self.sizes.append(out.numel())
        return out


def test_no_table_of_cosines_outgrows_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of captions and excluded prompts, and of prompts and captions; in blocks as in one."""
    vectors = F.normalize(torch.randn(70, 8, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(caption_bank, "pooled", lambda pipe, texts, device: vectors[[int(t) for t in texts]])
    monkeypatch.setattr(caption_bank, "too_long", lambda pipe, texts: [])
    for name, numbers in (("captions", range(40)), ("memorized", range(40, 50))):
        (tmp_path / f"{name}.txt").write_text("\n".join(map(str, numbers)))
    sources, prompts = [str(tmp_path / f"{name}.txt") for name in ("captions", "memorized")], range(50, 70)

    def actual() -> tuple[list[str], list[str | None]]:
        bank = CaptionBank.embed(None, CPU, *sources, max_cosine=0.7)
        return bank.texts, bank.nearest([*map(str, prompts), "3"], 0.5, 0.8)

    whole = actual()
    assert 0 < len(whole[0]) < 40 and None in whole[1] and set(whole[1]) - {None}
    for most in (64, 5):  # 5: not even a row
        monkeypatch.setattr(caption_bank, "COSINES", most)
        with Products() as products:
            assert actual() == whole
        assert max(products.sizes) <= max(most, 40) and len(products.sizes) > 20


def test_captions_are_kept_until_teardown(pipe, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("sun")
    rule = Detour(StaticTransition(), captions=str(tmp_path / "captions.txt"), min_cosine=-1.0)

    def alternative() -> str:
        rule.prepare(pipe, requests(1), CPU)
        return rule.alternatives[0]

    assert alternative() == "sun"
    bank = weakref.ref(rule._bank)
    (tmp_path / "captions.txt").write_text("old map")
    assert alternative() == "sun"
    rule.teardown(None, None, "predict")
    gc.collect()
    assert bank() is None
    assert alternative() == "old map"


def test_what_the_model_was_trained_to_memorize_is_no_alternative(tmp_path: Path) -> None:
    """By the training run that its pipeline lies in; a given `exclude` replaces that."""
    run = save_training_run(tmp_path / "trained", tmp_path)
    captions, other = tmp_path / "captions.txt", tmp_path / "other.txt"
    captions.write_text("\n".join(CAPTIONS)), other.write_text(CAPTIONS[7])
    pipe = load_pipeline(str(run / "pipeline"))
    for exclude, left in ((None, CAPTIONS[4:]), (str(other), CAPTIONS[:7])):
        rule = Detour(StaticTransition(), captions=str(captions), exclude=exclude, max_cosine=1.0)
        rule.load(pipe, CPU)
        assert rule._bank.texts == left
