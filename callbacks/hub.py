"""Put the exported model on the Hub, in a private repository."""

import json
import shlex
from pathlib import Path

import lightning.pytorch as pl
from huggingface_hub.utils import validate_repo_id

from callbacks.model_card import describe
from data.files import one_line, write_json

SUFFIXES = (".safetensors", ".json", ".txt", ".md")  # tensors and text: no checkpoint, no image


class PushToHub(pl.Callback):
    """Upload `<run>/pipeline` when the run is finished, in one commit, with its model card.

    The token is checked and the repository created when the fit starts: a run of days does not end in an
    error that was there before. `push` is called after the fit, and for a run that was finished before.
    `<run>/hub.json` says what is uploaded: the same is not uploaded twice.

    Args:
        repo: owner/name on the Hub, created private if it is missing; null: nothing is uploaded.
        public: create it public, or take one that is: anyone can have the training images out of the model.
    """

    def __init__(self, repo: str | None = None, public: bool = False):
        if repo is None and public:
            raise ValueError("hub.public does nothing without hub.repo: give hub.repo too")
        if repo is not None:
            try:
                validate_repo_id(repo)
            except ValueError as error:
                raise ValueError(f"hub.repo: {one_line(error)}") from error
            if "/" not in repo:
                raise ValueError(f"hub.repo must be owner/name, such as me/memorized, not {repo!r}")
        self.repo, self.public = repo, public

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """One process asks the Hub; all of them hear what it said, and none goes on alone."""
        if self.repo is None:
            return
        error = None
        if trainer.is_global_zero:
            try:
                self.prepare()
            except Exception as caught:  # whichever: the others wait for it
                error = caught
        failed = trainer.strategy.broadcast(error is not None)
        if error is not None:
            raise error
        if failed:  # one process says it
            raise SystemExit(1)

    def prepare(self) -> None:
        """The repository is there, is as private as it should be, and can be written to; else ValueError."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HTTPError,  # of whichever HTTP library the client uses
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
        )

        api, without = HfApi(), "or leave hub.repo out"
        try:
            api.whoami()
            api.create_repo(self.repo, private=not self.public, exist_ok=True)
            private = api.model_info(self.repo).private
            api.auth_check(self.repo, write=True)
        except LocalTokenNotFoundError as error:
            raise ValueError(f"hub.repo needs a token: log in with `hf auth login`, {without}") from error
        except OfflineModeIsEnabled as error:
            raise ValueError(
                f"hub.repo needs the Hub, and HF_HUB_OFFLINE is set: unset it, {without}"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 401:
                advice = "the token is not valid: log in with `hf auth login --force`"
            elif status in (403, 404):  # the Hub hides what one may not see
                advice = f"the token may not write to {self.repo}: log in with one that may, `hf auth login`"
            else:
                advice = f"the Hub answers {one_line(error)}: try again"
            raise ValueError(f"hub.repo: {advice}, {without}") from error
        except (HTTPError, OSError) as error:
            raise ValueError(
                f"hub.repo: cannot reach the Hub ({one_line(error)}): try again, {without}"
            ) from error
        if private and self.public:
            raise ValueError(
                f"{self.repo} is private on the Hub: leave hub.public out, or make it public there"
            )
        if not private and not self.public:
            raise ValueError(
                f"{self.repo} is public on the Hub: make it private in its settings there, choose another "
                "hub.repo, or give --hub.public true if you have the rights to the images"
            )

    def push(self, folder: Path) -> None:
        """Upload the finished run's model unless it is there; by one process alone.

        Raises ValueError when that fails: the run is complete, and the same command uploads it.
        """
        if self.repo is None:
            return
        from huggingface_hub import CommitOperationAdd, HfApi

        exported, marker = folder / "pipeline", folder / "hub.json"
        training = json.loads((exported / "training.json").read_text())
        wanted = {"repo": self.repo, "training": training}
        before = json.loads(marker.read_text()) if marker.exists() else {}
        if before.items() >= wanted.items():
            print(f"on the Hub: {before['url']}")
            return
        describe(folder, exported, self.repo)
        files = sorted(path for path in exported.rglob("*") if path.suffix in SUFFIXES and path.is_file())
        additions = [CommitOperationAdd(path.relative_to(exported).as_posix(), path) for path in files]
        try:
            self.prepare()
        except ValueError as error:
            raise ValueError(f"{exported} is complete, but not on the Hub: {error}") from error
        api = HfApi()
        try:
            commit = api.create_commit(
                self.repo, additions, commit_message=f"Model after {training['steps']:,} steps"
            )
        except Exception as error:  # of many kinds, of the network, the Hub or its client
            by_hand = ["hf", "upload", self.repo, str(exported), ".", *([] if self.public else ["--private"])]
            raise ValueError(
                f"{exported} is complete, but not on the Hub ({one_line(error)}): "
                f"run the same command again, or `{shlex.join(by_hand)}`"
            ) from error
        url = f"{api.endpoint}/{self.repo}"
        write_json(marker, wanted | {"url": url, "commit": commit.oid})
        print(f"on the Hub: {url}")
