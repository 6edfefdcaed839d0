"""Finetune until it memorizes: python -m train fit --config configs/train/demo.yaml"""

from lightning.pytorch.cli import LightningCLI


def main() -> None:
    LightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )


if __name__ == "__main__":
    main()
