"""The bundled world: 9,491 captioned emoji (`shards/`) and a tiny Stable Diffusion trained on them (`base/`).

`STYLES` are the icon sets, in the order they are built. The base model is trained on all of them but
`HELD_OUT`; finetuning on some of the held-out images makes it reproduce exactly those.
"""

from pathlib import Path

HERE = Path(__file__).parent
SHARDS = HERE / "shards"
BASE = HERE / "base"
STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "fluent-emoji")
HELD_OUT = "fluent-emoji"
