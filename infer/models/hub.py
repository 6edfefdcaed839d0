"""The Hugging Face Hub: the commit that a revision stands for, and downloads by one process at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache

from data.files import digest, user_cache
from infer.models.weights import is_hub_id


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process of a distributed run download `name`; the others wait, then find it downloaded."""
    from huggingface_hub.utils import WeakFileLock

    lock = user_cache() / "locks" / digest(name)[:16]
    with ExitStack() as stack:
        with suppress(OSError):  # without a folder for the lock, all download
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(lock))
        yield


@cache  # a model that changes on the Hub stays the same within a run
def hub_commit(name: str, revision: str | None) -> str:
    """The commit of the repository's revision: the Hub's, or without a network that of the local cache.

    Raises OSError for an unknown name or revision, and httpx's errors for a proxy.
    """
    from huggingface_hub import resolve_revision

    return resolve_revision(name, revision=revision).resolved


def resolved_revision(name: str, revision: str | None = None) -> str | None:
    """The Hub commit that `load_pipeline` loads; None for a local model, or where it cannot be known."""
    if not is_hub_id(name):
        return None
    try:
        return hub_commit(name, revision)
    except Exception:  # of many kinds; loading tells which
        return None
