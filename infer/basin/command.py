"""`python -m infer basin`."""

from rich.console import Console

from data.arguments import options_of
from data.captioned import load_captioned
from infer.basin.explore import Transition, explore
from infer.basin.options import Basin
from infer.basin.plots import save_figures
from infer.basin.scale_images import choose_images, measure_scales
from infer.basin.scale_plots import save_scale_figures
from infer.denoising.curves import Rules


def basin(args: list[str], transition: Transition, dynamic: Rules) -> None:
    """Draw where a model's attraction basin ends, and measure how wide the basin of each image is."""
    [options] = options_of([Basin], basin, args)
    samples = load_captioned(*options.training)
    images = choose_images(options, samples)
    findings = explore(options, samples, transition, dynamic)
    paths = [*save_figures(findings), findings.write()]
    Console().print(findings.point_table(), findings.firing_table())
    print("\n".join(findings.summary_lines()))
    if images:
        scales = measure_scales(options, images)
        paths += [*save_scale_figures(scales), *scales.write()]
        Console().print(scales.table())
        print("".join(f"{note}\n" for note in scales.notes()), end="")
    print(f"figures and numbers: {', '.join(map(str, paths))}")
