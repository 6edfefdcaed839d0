"""`python -m infer report`."""

from pathlib import Path


def report(args: list[str]) -> None:
    """Write the page of a comparison folder again."""
    usage = "usage: python -m infer report COMPARISON_FOLDER"
    if args in (["-h"], ["--help"]):
        print(f"{usage}\n\n{report.__doc__}")
        return
    if len(args) != 1 or args[0].startswith("-"):
        raise ValueError(usage)
    from infer.report.page import write_report

    print(f"report: {write_report(Path(args[0])).resolve()}")
