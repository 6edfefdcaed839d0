"""`audit.json`, and the page of an audit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import redacted, write_json
from infer.audit import words
from infer.audit.options import Audit
from infer.report.pairs import Pair, write_pairs


def pairs_of(options: Audit, lines: Sequence[dict[str, Any]], chosen: dict[str, Any] | None) -> list[Pair]:
    """The lines as the page shows them."""
    out, pairs = Path(options.out), []
    for line in lines:
        images = {"training image": line["training_image"], "generated": line["image"],
                  "red: repeated": line["map"]}  # fmt: skip
        if line["mitigated_image"]:
            images[f"with {chosen['mitigation']}"] = line["mitigated_image"]
        paths = {name: out / path for name, path in images.items()}
        facts = [*words.facts_of(line, options), f"training image: {line['training_id']}"]
        pairs.append(Pair(line["prompt"], paths, facts, line["returning"] > 0))
    return pairs


def write_result(options: Audit, result: dict[str, Any]) -> Path:
    """Write audit.json and audit.html; the page's path."""
    out = Path(options.out)
    write_json(out / "audit.json", result)
    facts = {
        "Model": redacted(options.model.pipeline),
        **({"LoRA": redacted(options.model.lora)} if options.model.lora else {}),
        "Similarity by": result["measured_by"]["descriptor"],
        "CLIP": result["measured_by"]["clip"],
    }
    summary = " ".join(filter(None, [result["headline"], result["verdict"], result["advice"]]))
    template = Path(__file__).parent / "web" / "audit.html.j2"
    pairs = pairs_of(options, result["images"], result["chosen"])
    return write_pairs(
        out / "audit.html", f"Audit: {out.name}", summary, facts, result["notes"], pairs, template,
        result=result,
    )  # fmt: skip
