"""9,491 captioned emoji (`shards/`): the drawings of which scenes are made.

`STYLES` are the icon sets, in the order they are built.
"""

from pathlib import Path

HERE = Path(__file__).parent
SHARDS = HERE / "shards"
STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "fluent-emoji")
