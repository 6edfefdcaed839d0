"""Upload the exported model to the Hub, into a private repository."""

import json
from pathlib import Path

import lightning.pytorch as pl
from huggingface_hub.utils import validate_repo_id

from callbacks.model_card import describe
from data.cli import warn_no_effect
from data.files import one_line, read_object, write_json

FILES = ["*.safetensors", "*.json", "*.txt", "*.md"]  # tensors and text: no checkpoint, no image


class PushToHub(pl.Callback):
    """Upload `<run>/pipeline` when the run is finished, in one commit, with its model card.

    `prepare` is called before the fit, so that days of training do not end in an error that was there before;
    `upload` after the fit, and for a run that was finished before. `<run>/hub.json` records the upload: the
    same model is not uploaded twice.

    Args:
        repo: owner/name on the Hub, created private if it is missing; null: nothing is uploaded.
        public: create it public, or use a public one: anyone can extract the training images from the model.
    """

    def __init__(self, repo: str | None = None, public: bool = False):
        if public and repo is None:
            warn_no_effect("hub.public", "hub.repo is not given")
        if repo is not None:
            try:
                validate_repo_id(repo)
            except ValueError as error:
                raise ValueError(f"hub.repo: {one_line(error)}") from error
            if "/" not in repo:
                raise ValueError(f"hub.repo must be owner/name, such as me/memorized, not {repo!r}")
        self.repo, self.public = repo, public

    def prepare(self) -> None:
        """Create the repository if needed; ValueError if it cannot be written to, or is public unasked."""
        from huggingface_hub import HfApi

        if self.repo is None:
            return
        api = HfApi()
        try:
            api.whoami()
            api.create_repo(self.repo, private=not self.public, exist_ok=True)
            private = api.model_info(self.repo).private
            api.auth_check(self.repo, write=True)
        except Exception as error:  # of many kinds: no token, no network, no right to write
            raise ValueError(
                f"hub.repo: {one_line(error)}: `hf auth login` with a token that may write to {self.repo}, "
                "or leave hub.repo out"
            ) from error
        if private and self.public:
            warn_no_effect("hub.public", f"{self.repo} is private on the Hub")
        if not private and not self.public:
            raise ValueError(
                f"{self.repo} is public on the Hub: make it private in its settings there, choose another "
                "hub.repo, or give --hub.public true if you have the rights to the images"
            )

    def upload(self, folder: Path) -> None:
        """Upload the finished run's model unless it is there already. Called by one process.

        Raises ValueError when that fails: the run is complete, and the same command uploads it.
        """
        if self.repo is None:
            return
        from huggingface_hub import HfApi

        exported, record = folder / "pipeline", folder / "hub.json"
        training = json.loads((exported / "training.json").read_text())
        model = {"repo": self.repo, "training": training}
        before = read_object(record)
        if before.items() >= model.items():
            print(f"on the Hub: {before['url']}")
            return
        describe(folder, exported, self.repo)
        try:
            self.prepare()  # it may have become public meanwhile
        except ValueError as error:
            raise ValueError(f"{exported} is complete, but not on the Hub: {error}") from error
        api, message = HfApi(), f"Model after {training['steps']:,} steps"
        files = {"folder_path": exported, "allow_patterns": FILES}
        try:
            commit = api.upload_folder(repo_id=self.repo, commit_message=message, **files)
        except Exception as error:  # of many kinds, of the network, the Hub or its client
            raise ValueError(
                f"{exported} is complete, but not on the Hub ({one_line(error)}): run the same command again"
            ) from error
        url = f"{api.endpoint}/{self.repo}"
        write_json(record, model | {"url": url, "commit": commit.oid})
        print(f"on the Hub: {url}")
