"""`python -m infer index`."""

from pathlib import Path

from data.arguments import options_of
from data.captioned import load_captioned
from infer.index.descriptor_index import DescriptorIndex
from infer.index.options import IndexOptions
from infer.metrics.sscd import chosen_descriptor
from infer.metrics.training_set import TrainingSet


def index(args: list[str]) -> None:
    """Describe training images in one file, for the guard of predict (--guard.index)."""
    [options] = options_of([IndexOptions], index, args)
    sscd = options.sscd, options.sscd_protocol, options.sscd_sha256, options.device
    images, descriptor = load_captioned(*options.training), chosen_descriptor(*sscd)
    training = TrainingSet(images, options.resolution, {"training": descriptor}, options.cache)
    made = DescriptorIndex.of(training, options.ids, options.sscd)
    made.save(Path(options.out))
    size = Path(options.out).stat().st_size / 2**20
    print(f"{len(made.embeddings):,} images, {made.descriptor}: {options.out} ({size:.1f} MiB)")
    if left_out := training.left_out():
        print(
            f"{len(left_out)} images are left out, they cannot be read or have one colour: {left_out[0]} ..."
        )
    if options.sscd is None:
        print(
            "Anyone can see the images in these descriptors, at 32x32: use --sscd for an index to hand on, "
            "and where copies may be shifted or cropped"
        )
