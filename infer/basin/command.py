"""`python -m infer basin`."""

from rich.console import Console

from data.arguments import options_of
from infer.basin.explore import Transition, explore
from infer.basin.options import Basin
from infer.basin.plots import save_figures
from infer.denoising.curves import Rules


def basin(args: list[str], transition: Transition, dynamic: Rules) -> None:
    """Draw where a model's attraction basin ends: curves, and images for full guidance on [t, 0]."""
    [options] = options_of([Basin], basin, args)
    findings = explore(options, transition, dynamic)
    paths = [*save_figures(findings), findings.write()]
    Console().print(findings.point_table(), findings.firing_table())
    print("\n".join(findings.summary_lines()))
    print(f"figures and numbers: {', '.join(map(str, paths))}")
