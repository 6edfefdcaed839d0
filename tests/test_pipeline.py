"""Models of every form: a folder, a single file in the original layout, and LoRAs on top of either."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.pipeline import LORA_FILE, check_lora, check_pipeline, fingerprint, load_pipeline, pipeline_class
from tests.conftest import BASE, random_pipeline
from tests.single_file import unet_key, write_single_file

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = ("unet", "vae", "text_encoder")
UNET_LAYERS = [  # each kind of layer that LoRAs are made for
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.attentions.1.proj_in",
    "down_blocks.1.resnets.0.conv1",
    "up_blocks.0.upsamplers.0.conv",
]
TEXT_LAYERS = [f"encoder.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")]


def disturbed(pipe: Any) -> Any:
    """No two weights alike: norms start as ones, biases as zeros, and exchanged ones would not show."""
    for name in PARTS:
        for weight in getattr(pipe, name).parameters():
            weight.data += 0.02 * torch.randn_like(weight)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    disturbed(random_pipeline()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def single_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_single_file(
        load_pipeline(str(folder)), tmp_path_factory.mktemp("single") / "tiny.safetensors"
    )


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Puts a folder's files where the Hub's client keeps those that it has downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def put(name: str, folder: Path) -> None:
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("0" * 40)

    return put


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def weights(pipe: Any) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": weight.clone()
        for name in PARTS
        for key, weight in getattr(pipe, name).state_dict().items()
    }


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(
            ours[key], theirs[key], msg=lambda text, key=key: f"{key}: {text}", **tolerance
        )


def image(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return np.asarray(pipe("red square", generator=generator, num_inference_steps=3).images[0])


def random_layer(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A down, B up, and what they add to the weight."""
    out, into, *kernel = weight.shape
    down = torch.randn(rank, into, *kernel, generator=generator)
    up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
    return down, up, (up.flatten(1) @ down.flatten(1)).view_as(weight)


def kohya_lora(
    pipe: Any, path: Path, alpha: float, text: bool = True, original: bool = False
) -> dict[str, Tensor]:
    """Write a LoRA of rank 2 as kohya's scripts do, blocks under the original names or not; what it adds."""
    generator, tensors, added = torch.Generator().manual_seed(5), {}, {}
    layers = [("unet", name) for name in UNET_LAYERS]
    layers += [("text_encoder", name) for name in TEXT_LAYERS if text]
    for part, name in layers:
        weight = getattr(pipe, part).get_parameter(f"{name}.weight")
        down, up, product = random_layer(weight, 2, generator)
        if part == "text_encoder":
            key = "lora_te_text_model_" + name.replace(".", "_")
        elif original:
            old = unet_key(f"{name}.weight", 1, {"down_blocks.1", "up_blocks.0"}).removesuffix(".weight")
            key = "lora_unet_" + old.replace(".", "_")
        else:
            key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
        added[f"{part}.{name}.weight"] = alpha / 2 * product
    save_file(tensors, path)
    return added


def diffusers_lora(pipe: Any, folder: Path, alpha: int, metadata: bool) -> dict[str, Tensor]:
    """Write a LoRA of rank 2 by peft and diffusers, as diffusers' training scripts do; what it adds."""
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["to_q", "to_out.0", "proj_in"])
    pipe.unet.add_adapter(config)
    generator, added = torch.Generator().manual_seed(6), {}
    for name, module in pipe.unet.named_modules():
        if hasattr(module, "lora_A"):
            down, up, product = random_layer(module.base_layer.weight, 2, generator)
            module.lora_A["default"].weight.data = down
            module.lora_B["default"].weight.data = up
            added[f"unet.{name}.weight"] = product * (alpha / 2 if metadata else 1)
    about = {"unet_lora_adapter_metadata": config.to_dict()} if metadata else {}
    pipeline_class().save_lora_weights(folder, get_peft_model_state_dict(pipe.unet), **about)
    return added


def sum_of(before: dict[str, Tensor], added: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    assert added.keys() <= before.keys()
    return before | {key: before[key] + scale * change for key, change in added.items()}


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_is_the_folder(folder: Path, tmp_path: Path, kind: str):
    """SD 2 has OpenCLIP's names, and linear projections around attention."""
    if kind == "sd2":
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        pipe = random_pipeline()
        pipe.unet = UNet2DConditionModel.from_config(
            pipe.unet.config, use_linear_projection=True, layers_per_block=2
        )
        pipe.text_encoder.config.num_hidden_layers = 3
        pipe.text_encoder = CLIPTextModel(pipe.text_encoder.config)
        folder = tmp_path / "sd2"
        disturbed(pipe).save_pretrained(folder)
    pipe = load_pipeline(str(folder))
    path = write_single_file(pipe, tmp_path / "model.safetensors", open_clip=kind == "sd2")
    loaded = load_pipeline(str(path), config=str(folder))
    assert_equal(weights(loaded), weights(pipe), rtol=0, atol=0)
    assert not any(weight.requires_grad for name in PARTS for weight in getattr(loaded, name).parameters())
    assert not any(getattr(loaded, name).training for name in PARTS)
    assert np.array_equal(image(loaded), image(pipe))


def test_the_bundled_model_as_a_single_file(tmp_path: Path):
    pipe = load_pipeline(str(BASE))
    path = write_single_file(pipe, tmp_path / "base.safetensors")
    assert_equal(weights(load_pipeline(str(path), config=str(BASE))), weights(pipe), rtol=0, atol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_scheduler_is_that_of_the_configs(
    single_file: Path, folder: Path, tmp_path: Path, prediction_type: str
):
    """A checkpoint does not say what it predicts."""
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    for path in config.rglob("*.safetensors"):  # configs and tokenizer are enough
        path.unlink()
    edit(config / "scheduler/scheduler_config.json", {"prediction_type": prediction_type})
    parts = {  # SD 1.5 has them, and they are not loaded
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    edit(config / "model_index.json", parts)
    pipe = load_pipeline(str(single_file), config=str(config))
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert dict(pipe.scheduler.config)["prediction_type"] == prediction_type
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"


def test_the_configs_can_come_from_the_hub(
    single_file: Path, folder: Path, hub_cache: Callable[[str, Path], None]
):
    hub_cache("someone/tiny", folder)
    pipe = load_pipeline(str(single_file), config="someone/tiny")
    assert_equal(weights(pipe), weights(load_pipeline(str(folder))), rtol=0, atol=0)


@pytest.mark.parametrize(("alpha", "metadata"), [(2, False), (6, True)])
def test_a_lora_of_diffusers_adds_scale_times_b_a(folder: Path, tmp_path: Path, alpha: int, metadata: bool):
    """Without metadata diffusers takes alpha to be the rank."""
    before = weights(load_pipeline(str(folder)))
    added = diffusers_lora(load_pipeline(str(folder)), tmp_path, alpha, metadata)
    assert len(added) == 4 * 5  # four transformers, with two of to_q and of to_out.0 and one proj_in each
    for lora in (tmp_path, tmp_path / LORA_FILE):  # the folder, the file
        pipe = load_pipeline(str(folder), lora=str(lora), lora_scale=0.6)
        assert_equal(weights(pipe), sum_of(before, added, 0.6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("form", ["folder", "single file"])
def test_a_lora_of_kohya_adds_alpha_over_rank_times_b_a(
    folder: Path, single_file: Path, tmp_path: Path, form: str, original: bool
):
    model = {"name": str(folder)} if form == "folder" else {"name": str(single_file), "config": str(folder)}
    before = load_pipeline(**model)
    added = kohya_lora(before, tmp_path / "style.safetensors", alpha=1.0, original=original)
    pipe = load_pipeline(**model, lora=str(tmp_path / "style.safetensors"), lora_scale=-0.5)
    assert_equal(weights(pipe), sum_of(weights(before), added, -0.5), rtol=1e-5, atol=1e-5)


def test_a_lora_leaves_plain_parts(folder: Path, tmp_path: Path):
    """Prediction costs nothing extra, and the pipeline can be saved as any other."""
    plain = load_pipeline(str(folder))
    kohya_lora(plain, tmp_path / "style.safetensors", alpha=2.0)
    pipe = load_pipeline(str(folder), lora=str(tmp_path / "style.safetensors"))
    for name in PARTS:
        ours, theirs = getattr(pipe, name), getattr(plain, name)
        assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
        assert not any(weight.requires_grad for weight in ours.parameters())
    assert not np.array_equal(image(pipe), image(plain))
    pipe.save_pretrained(tmp_path / "saved")
    assert_equal(weights(load_pipeline(str(tmp_path / "saved"))), weights(pipe), rtol=0, atol=0)


def test_a_lora_of_the_hub(folder: Path, tmp_path: Path, hub_cache: Callable[[str, Path], None]):
    added = diffusers_lora(load_pipeline(str(folder)), tmp_path / "lora", 2, metadata=False)
    hub_cache("someone/style", tmp_path / "lora")
    check_lora("someone/style")
    pipe = load_pipeline(str(folder), lora="someone/style")
    before = weights(load_pipeline(str(folder)))
    assert_equal(weights(pipe), sum_of(before, added, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("others", [["style.safetensors"], ["a.safetensors", "b.safetensors"]])
def test_a_lora_of_the_hub_under_a_name_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[str]
):
    from huggingface_hub.errors import RemoteEntryNotFoundError

    class NotThere(RemoteEntryNotFoundError):
        def __init__(self):
            """Without an answer of the Hub."""

    def download(repository: str, name: str) -> str:
        if name == LORA_FILE:
            raise NotThere
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: ["README.md", *others])
    before = load_pipeline(str(folder))
    added = kohya_lora(before, tmp_path / "style.safetensors", alpha=2.0)
    if len(others) > 1:
        with pytest.raises(ValueError, match="2 other .safetensors files, not one: download the LoRA"):
            load_pipeline(str(folder), lora="someone/style")
        return
    pipe = load_pipeline(str(folder), lora="someone/style")
    assert_equal(weights(pipe), sum_of(weights(before), added, 1), rtol=1e-5, atol=1e-5)


def test_dtype_is_that_of_all_weights(folder: Path, single_file: Path, tmp_path: Path):
    kohya_lora(load_pipeline(str(folder)), tmp_path / "style.safetensors", alpha=2.0)
    lora = str(tmp_path / "style.safetensors")
    for name, config in ((str(folder), None), (str(single_file), str(folder))):
        pipe = load_pipeline(name, dtype=torch.bfloat16, lora=lora, config=config)
        assert {weight.dtype for weight in weights(pipe).values()} == {torch.bfloat16}


def test_loading_says_nothing(
    folder: Path, single_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture, recwarn: Any
):
    """diffusers would warn of a LoRA that leaves the text encoder alone."""
    kohya_lora(load_pipeline(str(folder)), tmp_path / "style.safetensors", alpha=2.0, text=False)
    handler, records = logging.Handler(), []
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("WARNING")
    try:
        load_pipeline(str(single_file), config=str(folder), lora=str(tmp_path / "style.safetensors"))
        assert {logger.level for logger in loggers} == {logging.WARNING}  # as it was
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert [record.getMessage() for record in records] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def failure(kind: type[Exception], match: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        call(*args, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def changed(source: Path, path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> str:
    save_file(change(load_file(source)), path)
    return str(path)


def test_single_files_that_cannot_be_loaded(folder: Path, single_file: Path, tmp_path: Path):
    """Found by the check that comes before heavy work, too."""
    names = ("missing.safetensors", "damaged.safetensors", "empty.safetensors", "pickle.safetensors")
    missing, damaged, empty, disguised = (str(tmp_path / name) for name in names)
    Path(damaged).write_bytes(single_file.read_bytes()[:-1000])
    Path(empty).touch()
    torch.save({"model.diffusion_model.x": torch.zeros(1)}, disguised)

    def without(prefix: str) -> str:
        return changed(
            single_file,
            tmp_path / f"without_{prefix}.safetensors",
            lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)},
        )

    layer = without("model.diffusion_model.input_blocks.3.0.")
    failure(ValueError, "does not fit .* lacks weights", load_pipeline, layer, config=str(folder))
    xl = changed(
        single_file,
        tmp_path / "xl.safetensors",
        lambda tensors: {key.replace("cond_stage_model", "conditioner"): t for key, t in tensors.items()},
    )
    part = str(folder / "unet/diffusion_pytorch_model.safetensors")
    for load in (lambda name: check_pipeline(name), lambda name: load_pipeline(name, config=str(folder))):
        failure(FileNotFoundError, "no file '.*missing.safetensors'", load, missing)
        failure(FileNotFoundError, "no file 'models/missing.safetensors'", load, "models/missing.safetensors")
        for name in (damaged, empty, disguised):
            failure(ValueError, "not a whole safetensors file .* download or convert it again", load, name)
        failure(ValueError, r"lacks the VAE \(first_stage_model", load, without("first_stage_model"))
        failure(ValueError, r"lacks the text encoder \(cond_stage", load, without("cond_stage_model"))
        failure(ValueError, "lacks the UNet .* the VAE .* the text encoder", load, part)
        failure(ValueError, "is a Stable Diffusion XL checkpoint", load, xl)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_pickles_are_refused(folder: Path, tmp_path: Path, suffix: str):
    """Nothing in one is read: it could run code."""

    class Exploit:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / f"model{suffix}"
    torch.save(Exploit(), path)
    for call in (
        check_pipeline,
        load_pipeline,
        check_lora,
        lambda name: load_pipeline(str(folder), lora=name),
    ):
        failure(ValueError, "is a pickle, which may run code .* convert it to .safetensors", call, str(path))
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_searched_for_safetensors_only(folder: Path, tmp_path: Path):
    """With pickles in it, of the pipeline or the LoRA, it is not whole."""
    model, lora = tmp_path / "model", tmp_path / "lora"
    shutil.copytree(folder, model)
    path = model / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    failure(FileNotFoundError, "is not a whole diffusers pipeline", load_pipeline, str(model))
    lora.mkdir()
    torch.save({}, lora / "pytorch_lora_weights.bin")
    failure(FileNotFoundError, f"a folder with {LORA_FILE}", load_pipeline, str(folder), lora=str(lora))


def test_configs_that_cannot_be_used(folder: Path, single_file: Path, tmp_path: Path):
    name = str(single_file)
    for call in (check_pipeline, load_pipeline):
        failure(ValueError, "config is for a single .safetensors file", call, str(folder), config=str(folder))
        failure(ValueError, "config is for a single", call, "someone/tiny", config=str(folder))
        failure(FileNotFoundError, "no model folder", call, name, config=str(tmp_path / "nothing"))
        failure(FileNotFoundError, "it lacks unet, vae", call, name, config=str(tmp_path))
    # no network: neither the repository nor diffusers' own choice
    failure(FileNotFoundError, "give config, a diffusers", load_pipeline, name, config="someone/tiny")
    failure(FileNotFoundError, "that diffusers chose .* give config", load_pipeline, name)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"block_out_channels": [8, 32]}),  # shapes differ
        ("unet", {"layers_per_block": 2}),  # the file has too few blocks
        ("vae", {"mid_block_add_attention": False}),  # the file has layers without a place
        ("vae", {"block_out_channels": [8]}),
        ("text_encoder", {"num_hidden_layers": 2}),
    ],
)
def test_configs_of_another_architecture(
    folder: Path, single_file: Path, tmp_path: Path, part: str, change: dict[str, Any]
):
    """diffusers itself would leave out layers that have no place."""
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    edit(config / part / "config.json", change)
    failure(ValueError, "does not fit the configs", load_pipeline, str(single_file), config=str(config))


def test_loras_that_cannot_be_loaded(folder: Path, single_file: Path, tmp_path: Path):
    """Found by the check that comes before heavy work, too."""
    good = tmp_path / "good.safetensors"
    kohya_lora(load_pipeline(str(folder)), good, alpha=2.0)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes()[:-100])
    bare = changed(
        good, tmp_path / "bare.safetensors", lambda tensors: {f"x.{k}": tensors[k] for k in tensors}
    )
    others = [
        changed(
            good,
            tmp_path / f"{name}.safetensors",
            lambda tensors, name=name: tensors | {f"lora_unet_conv_in.{name}": torch.ones(1)},
        )
        for name in ("dora_scale", "hada_w1_a", "lokr_w1")
    ]
    for call in (check_lora, lambda lora: load_pipeline(str(folder), lora=lora)):
        failure(
            FileNotFoundError, "no file '.*nothing.safetensors'", call, str(tmp_path / "nothing.safetensors")
        )
        failure(FileNotFoundError, "no file 'loras/mine.safetensors'", call, "loras/mine.safetensors")
        failure(FileNotFoundError, "no LoRA .* give a .safetensors file", call, str(tmp_path / "nothing"))
        failure(FileNotFoundError, f"a folder with {LORA_FILE}", call, str(tmp_path))
        failure(ValueError, "damaged.safetensors' is not a whole safetensors file", call, str(damaged))
        failure(ValueError, "tiny.safetensors' is no LoRA for Stable Diffusion", call, str(single_file))
        failure(ValueError, "bare.safetensors' is no LoRA for Stable Diffusion", call, bare)
        for other in others:
            failure(ValueError, "is a DoRA, LoHa or LoKr: give a plain LoRA", call, other)
    failure(
        FileNotFoundError, "from the Hub .* give a local file", load_pipeline, str(folder), lora="some/one"
    )
    failure(ValueError, "lora_scale 0.5 does nothing", load_pipeline, str(folder), lora_scale=0.5)
    failure(ValueError, "lora_scale 0.5 does nothing", check_lora, None, 0.5)
    check_lora(None)


def test_loras_of_another_model(folder: Path, tmp_path: Path):
    """Names or shapes that the model does not have, of all layers or of one: none is left out in silence."""
    kohya_lora(load_pipeline(str(folder)), good := tmp_path / "good.safetensors", alpha=2.0)
    first = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"

    def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}

    changes = {
        "blocks": lambda tensors: {
            key.replace("blocks_0_", "blocks_7_").replace("blocks_1_", "blocks_7_"): tensors[key]
            for key in tensors
            if "lora_unet" in key and "blocks" in key
        },
        "block": rename(first, first.replace("blocks_1", "blocks_5")),
        "layer": rename("layers_0_mlp", "layers_9_mlp"),
        "half": lambda tensors: {key: tensors[key] for key in tensors if key != f"{first}.lora_up.weight"},
        "shape": lambda tensors: tensors | {f"{first}.lora_down.weight": torch.zeros(2, 31)},
        "bare": rename(first, f"x.{first}"),
        "rest": lambda tensors: tensors | {"lora_unet_something": torch.zeros(1)},
    }
    for name, change in changes.items():
        lora = changed(good, tmp_path / f"{name}.safetensors", change)
        check_lora(lora)  # the header does not tell
        failure(
            ValueError, f"{name}.safetensors' does not fit this model", load_pipeline, str(folder), lora=lora
        )
    failure(ValueError, "good.safetensors' does not fit this model", load_pipeline, str(BASE), lora=str(good))


def test_checks_let_pass_what_can_be_loaded(folder: Path, single_file: Path, tmp_path: Path):
    diffusers_lora(load_pipeline(str(folder)), tmp_path, 2, metadata=False)
    check_pipeline(str(folder))
    check_pipeline("someone/tiny")
    check_pipeline(str(single_file))
    check_pipeline(str(single_file), str(folder))
    check_pipeline(str(single_file), "someone/tiny")
    check_lora(str(tmp_path))
    check_lora(str(tmp_path / LORA_FILE), 0.5)
    check_lora("someone/style", 0.5)


def test_a_fingerprint_tells_models_apart(folder: Path, single_file: Path, tmp_path: Path):
    """A change of one layer anywhere in a file changes it; the place of the file does not."""
    whole = fingerprint(str(single_file))
    shutil.copy(single_file, tmp_path / single_file.name)
    assert fingerprint(str(tmp_path / single_file.name)) == whole
    shutil.copy(single_file, tmp_path / "renamed.safetensors")
    assert fingerprint(str(tmp_path / "renamed.safetensors")) != whole
    for key in (
        "first_stage_model.decoder.mid.block_1.conv1.weight",
        "model.diffusion_model.time_embed.2.weight",  # at the end
        "model.diffusion_model.middle_block.0.in_layers.2.weight",
    ):
        path = changed(
            single_file,
            tmp_path / single_file.name,
            lambda tensors, key=key: tensors | {key: tensors[key] + 1},
        )
        assert fingerprint(path) != whole, key
    diffusers_lora(load_pipeline(str(folder)), tmp_path / "lora", 2, metadata=False)
    trained = fingerprint(str(tmp_path / "lora"))
    assert trained == fingerprint(str(tmp_path / "lora"))
    diffusers_lora(load_pipeline(str(BASE)), tmp_path / "lora", 2, metadata=False)
    assert fingerprint(str(tmp_path / "lora")) != trained
    assert fingerprint("someone/tiny") is None
