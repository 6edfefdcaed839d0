"""Files and names of weights, and the messages of the libraries that read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.files import one_line

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def is_file_name(name: str) -> bool:
    """Whether the name is that of a file of weights, existing or not, and of no folder."""
    return name.endswith((".safetensors", *PICKLES)) and not Path(name).is_dir()


def is_hub_id(name: str) -> bool:
    """Whether the name is `owner/name` and no local folder."""
    return (
        name.count("/") == 1
        and not name.startswith((".", "/", "~", "outputs/", "data/"))
        and not is_file_name(name)
        and not Path(name).exists()
    )


def check_safetensors(folder: Path) -> None:
    """FileNotFoundError for a folder without .safetensors; it names the pickle that is there instead."""
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
        why = f", only {pickles[0]}, a pickle, which may run code: convert it" if pickles else ""
        raise FileNotFoundError(f"{folder} has no .safetensors{why}")


def tensor_names(name: str) -> list[str]:
    """The names of a safetensors file's tensors, from its header.

    Raises ValueError for a pickle or a damaged file, FileNotFoundError for a missing one.
    """
    from safetensors import SafetensorError, safe_open

    if name.endswith(PICKLES):
        raise ValueError(f"{name!r} is a pickle, which may run code when read: convert it to .safetensors")
    if not Path(name).is_file():
        raise FileNotFoundError(f"no file {name!r}: check the path (one of the Hub is downloaded first)")
    try:
        with safe_open(name, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name!r} is not a whole safetensors file ({one_line(error)}): download or convert it again"
        ) from error


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Hide the progress bars of diffusers and transformers for what takes a second; downloads keep theirs."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    hook = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **kwargs | {"disable": True})
    )
    enabled = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        if enabled:
            diffusers_logging.enable_progress_bar()


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silence the warnings of diffusers and transformers about what is checked here."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = [(module, module.get_verbosity()) for module in (diffusers_logging, transformers_logging)]
    for module, _ in levels:
        module.set_verbosity(50)  # what they log as an error, they raise
    try:
        yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)
