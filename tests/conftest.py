"""A tiny random Stable Diffusion pipeline of the real classes, and small captioned data."""

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

# whose assertions say what differs, as those of tests do
pytest.register_assert_rewrite("tests.callbacks.mitigations.curves", "tests.infer.models.model_files")
os.environ.setdefault("ATTRACTION_BASIN_CACHE", str(Path(tempfile.gettempdir(), "attraction_basin_tests")))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_CONSOLE", "off")  # else it goes on listening to stderr after a run
# `make test` runs two files at a time, which share the cores
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

ROOT = Path(__file__).parent.parent
ROOMS = ("train", "infer", "callbacks", "data", "bench")  # those whose files of tests take longest first
BASE = ROOT / "data/scenes/base"
CAPTIONS = [
    "red square",
    "blue circle",
    "green leaf",
    "old map",
    "grinning cat",
    "flying saucer",
    "tea cup",
    "sun",
]


def pytest_configure(config: pytest.Config) -> None:
    """xdist would begin with the files of most tests, and leave the two processes long ones for the end."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By their rooms: files that take long first, and before them those of no room."""

    def room(item: pytest.Item) -> int:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        return ROOMS.index(folder) if folder in ROOMS else -1

    items.sort(key=room)


def random_pipeline(prediction_type: str = "v_prediction"):
    """StableDiffusionPipeline with random weights: 16 px images, 8x8x4 latents, 8 text tokens."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from train.base_model.clip import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, 600, 8)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=16,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type=prediction_type,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Quickest for tiny models where cores are shared, and the same sums on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def unet() -> torch.nn.Module:
    """The random pipeline's."""
    return random_pipeline().unet.eval()


@pytest.fixture(scope="session")
def sharp() -> Any:
    """The random pipeline with uneven attention, so smooth that rounding errors stay small."""
    from infer.detect.attention import cross_attentions

    model = random_pipeline()
    model.unet.eval(), model.text_encoder.eval()
    torch.manual_seed(0)
    for attention in cross_attentions(model.unet).values():
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            torch.nn.init.normal_(layer.weight, std=0.5)
    return model


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the random pipeline."""
    folder = tmp_path_factory.mktemp("tiny")
    random_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random pipeline no two weights of which are alike."""
    from tests.infer.models.model_files import disturbed

    path = tmp_path_factory.mktemp("folder")
    disturbed(random_pipeline()).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def model_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a single file."""
    from infer.models.pipeline import load_pipeline
    from tests.infer.models.single_file import write_single_file

    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    return write_single_file(load_pipeline(str(model_folder)), path)


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


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shard(tmp_path_factory.mktemp("shards") / "00000.tar")


def save_shard(path: Path) -> Path:
    """Eight 16 px images with captions, `s0`..`s7`, in one shard."""
    random = np.random.default_rng(0)
    with wds.TarWriter(str(path), encoder=False) as tar:
        for number, caption in enumerate(CAPTIONS):
            data = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(data, "png")
            tar.write({"__key__": f"s{number}", "png": data.getvalue(), "txt": caption.encode()})
    return path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 scenes to memorize, and 40 ordinary ones."""
    from data.scenes.__main__ import build

    folder = tmp_path_factory.mktemp("scenes")
    build(["--out", str(folder), "--parts", "memorized,ordinary", "--number", "40"])
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def save_clip(folder: Path) -> Path:
    """Folder of a random CLIPModel for 16 px images, with its tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from train.base_model.clip import train_tokenizer

    torch.manual_seed(1)
    tokenizer = train_tokenizer(CAPTIONS, 600, 8)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config=size | text, vision_config=size | {"image_size": 16, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side, half = {"height": 16, "width": 16}, [0.5] * 3
    CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=side, image_mean=half, image_std=half
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock_pipelines() -> dict[str, Any]:
    from tests.callbacks.adapters.families import classic_sdxl, quiet

    return {"sd": quiet(random_pipeline()), "sdxl": classic_sdxl()}


@pytest.fixture
def sd(stock_pipelines: dict[str, Any]) -> Any:
    from tests.callbacks.adapters.stock_runs import with_scheduler

    return with_scheduler(stock_pipelines["sd"], "ddim")


@pytest.fixture
def sdxl(stock_pipelines: dict[str, Any]) -> Any:
    from tests.callbacks.adapters.stock_runs import with_scheduler

    return with_scheduler(stock_pipelines["sdxl"], "ddim")


@pytest.fixture
def predict(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the command with options; the run folder. A later `--model.pipeline` or `--out` wins."""

    def run(*options: str, steps: int = 4) -> Path:
        from infer.__main__ import main
        from tests.infer.predict.runs import command

        assert main(command(tiny_pipeline, tmp_path / "run", steps, *options)) == 0
        return Path(options[options.index("--out") + 1]) if "--out" in options else tmp_path / "run"

    return run
