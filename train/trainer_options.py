"""Options of Lightning's trainer that a run has another place for, or would not heed."""

from typing import Any

# name, its usual values, what to do instead
REFUSED = (
    ("logger", (None,), "metrics.csv is always written, and W&B is --wandb"),
    ("default_root_dir", (None,), "use --out"),
    ("enable_checkpointing", (None, True), "a run can always be gone on with"),
    ("max_epochs", (None, -1), "a run is trainer.max_steps long"),
    ("max_time", (None,), "the same command goes on with a run that was cut: let the scheduler cut it"),
    ("min_epochs", (None,), "a run is trainer.max_steps long"),
    ("fast_dev_run", (False, 0), "`plan` says what a run would do; --trainer.max_steps 1 does a step"),
    ("limit_train_batches", (None, 1.0), "draws are planned: give trainer.max_steps"),
    ("overfit_batches", (0.0, 0), "draws are planned: give data.limit"),
    ("reload_dataloaders_every_n_epochs", (0,), "a run is one pass over planned draws"),
)


VALIDATION = tuple(
    (name, (None,), "a finetune validates nothing: its monitor is --grid")
    for name in ("limit_val_batches", "val_check_interval", "num_sanity_val_steps")
)
PRECISIONS = ("None", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed")


def check_trainer(options: Any, validates: bool) -> None:
    """ValueError for an option that would do nothing, or harm: each names what to use instead."""
    for name, usual, instead in REFUSED + (() if validates else VALIDATION):
        value = options[name]
        # 1 is 1.0 and False 0.0 for `in`
        if not any(value is known or (type(value) is type(known) and value == known) for known in usual):
            given = f" {value}" if isinstance(value, str | int | float) else ""
            raise ValueError(f"--trainer.{name}{given} is not for train: {instead}")
    if options.max_steps < 1:
        raise ValueError("trainer.max_steps must be set: a run is that many optimizer steps")
    if str(options.precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision {options.precision} is not supported: frozen parts are kept in float32; "
            "use bf16-mixed or 16-mixed"
        )


def as_lists(args: list[str], names: tuple[str, ...]) -> list[str]:
    """The arguments with a plain text after a list's option as a list of one: --data.sources images.tar."""
    out: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        if equals and name in names and is_text(value):
            arg = f"{name}=[{quoted(value)}]"
        elif out and out[-1] in names and is_text(arg):
            arg = f"[{quoted(arg)}]"
        out.append(arg)
    return out


def is_text(value: str) -> bool:
    """Neither a list, nor null, nor the next option."""
    return not value.startswith(("[", "--")) and value != "null"


def quoted(text: str) -> str:
    """A YAML string, whatever is in the text."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
