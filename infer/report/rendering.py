"""Pages from the templates in `web/`, complete in themselves."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.files import write_atomically
from infer.plotting import COPY_COLOR

WEB = Path(__file__).parent / "web"


def write_page(path: Path, template: Path, **values: Any) -> Path:
    """Write the page that a template makes of the values, which are escaped; its path.

    The template may extend or include those in `web/`.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, WEB]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(template.name).render(copy_color=COPY_COLOR, **values)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(page, encoding="utf-8"))
    return path
