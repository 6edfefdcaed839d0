"""Rebuild the bundled shards from the npm registry: python -m data.emoji --packages /tmp/icons"""

import argparse
from pathlib import Path

from data.emoji import SHARDS, STYLES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.emoji", description=__doc__)
    parser.add_argument(
        "--packages", type=Path, default=Path("outputs/icons"), help="where npm packages are kept"
    )
    parser.add_argument("--out", type=Path, default=SHARDS, help="where the shards go (default: %(default)s)")
    args = parser.parse_args()

    from data.emoji.build import VERSIONS, download, read_package, samples, write_shard

    args.out.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        icons, info = read_package(download(style, args.packages))
        with open(args.out / f"{style}-00000.tar.gz", "wb") as target:
            count = write_shard(target, samples(icons, info, VERSIONS[style]))
        print(f"{style}: {count} images, {info['license']['title']}, {info['author']['name']}")


if __name__ == "__main__":
    main()
