"""What ran is called by what it was: preset, file or class, with the settings that differ."""

from pathlib import Path

import pytest

from callbacks.mitigations.base import NoMitigation
from callbacks.mitigations.detour import Detour
from callbacks.mitigations.dynamic_transition import DynamicTransition
from callbacks.mitigations.preset_files import preset_names
from callbacks.mitigations.presets import MITIGATIONS, label, load_mitigation
from callbacks.mitigations.static_transition import StaticTransition


@pytest.mark.parametrize(
    "preset, options, expected",
    [
        ("stp", {}, "stp"),
        ("stp", {"timestep": 600}, "stp(timestep=600)"),
        ("stp", {"timestep": 500.0}, "stp"),
        ("scenes/og_stp", {"guidance_before": -0.25}, "scenes/og_stp(guidance_before=-0.25)"),
        ("none", {}, "none"),
        ("FILE", {}, "own"),
        ("FILE", {"gate": 0.5, "gate_timestep": 981}, "own(gate=0.5, gate_timestep=981)"),
    ],
)
def test_a_preset_with_what_was_changed(tmp_path: Path, preset: str, options: dict, expected: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("class_path: StaticTransition\ninit_args: {timestep: 300}\n")
    preset = preset.replace("FILE", str(path))
    assert label([load_mitigation(preset, options)], preset) == expected


def test_a_class_with_its_settings() -> None:
    assert label([StaticTransition(timestep=600)]) == "StaticTransition(timestep=600)"
    assert label([DynamicTransition()]) == "DynamicTransition"
    detour = Detour(StaticTransition(guidance_before=-1.5), prompt="old map")
    assert label([detour]) == "Detour(transition=StaticTransition(guidance_before=-1.5), prompt=old map)"


def test_only_no_mitigation_is_called_none() -> None:
    """Not one that stands among the trainer's callbacks beside it."""
    assert label([]) == label([NoMitigation()]) == label([NoMitigation()], "none") == "none"
    assert label([DynamicTransition(), NoMitigation()]) == "DynamicTransition"
    both = label([DynamicTransition(), load_mitigation("stp")], "stp")
    assert both == "DynamicTransition+stp"


def test_no_two_presets_have_one_label() -> None:
    names = [name for name in preset_names() if not name.startswith("scenes/detour")]
    assert [label([load_mitigation(name)], name) for name in names] == names
    assert {kind.__name__ for kind in MITIGATIONS} & set(names) == set()
