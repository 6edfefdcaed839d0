"""The world of scenes: what each part may show, true captions, and shards that are read as others are."""

import json
import tarfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data.captioned import load_captioned
from data.scenes import HELD_OUT_NAMES, HELD_OUT_STYLES, NAMES, STYLES, is_held_out
from data.scenes.__main__ import build
from data.scenes.backgrounds import PLAIN, TEXTURES, background
from data.scenes.build import write_part
from data.scenes.captions import captions_of
from data.scenes.compose import Placed, Scene, held_out_placement
from data.scenes.parts import PARTS, VARIANTS, part


def names_of(scene):
    return [placed.name for placed in scene.objects]


def pairs_of(scene):
    return list(combinations(scene.objects, 2))


def test_ordinary_scenes_show_nothing_that_is_held_out():
    scenes = part("ordinary", 2000)
    shown = {name for scene in scenes for name in names_of(scene)}
    assert shown == set(NAMES)
    assert not any(is_held_out(a.name, b.name) for scene in scenes for a, b in pairs_of(scene))
    assert not any(held_out_placement(a, b) for scene in scenes for a, b in pairs_of(scene))
    assert {scene.style for scene in scenes} == set(STYLES)
    assert {scene.background for scene in scenes} == {*PLAIN, *TEXTURES}


def test_what_is_held_out_is_shown_by_its_own_part_only():
    assert all(set(names_of(scene)) & set(HELD_OUT_NAMES) for scene in part("objects"))
    assert all(scene.style in HELD_OUT_STYLES for scene in part("styles"))
    assert all(any(held_out_placement(a, b) for a, b in pairs_of(scene)) for scene in part("placements"))
    assert all(is_held_out(*names_of(scene)) for scene in part("pairs") + part("memorized"))


def test_every_name_has_as_many_held_out_pairs():
    counts = [sum(is_held_out(name, other) for other in NAMES if other != name) for name in NAMES]
    assert min(counts) >= 19 and max(counts) <= 20


def test_no_pair_is_both_memorized_and_a_prompt_to_check_with():
    pairs = [frozenset(names_of(scene)) for scene in part("memorized") + part("pairs")]
    assert len(set(pairs)) == len(pairs) == 300


def test_templates_share_a_layout_and_differ_in_one_object():
    scenes = part("templates", 4 * VARIANTS)
    for first in range(0, len(scenes), VARIANTS):
        group = scenes[first : first + VARIANTS]
        layouts = {
            replace(scene, objects=tuple(replace(o, name="") for o in scene.objects)) for scene in group
        }
        assert len(layouts) == 1
        assert len({scene.objects[0].name for scene in group}) == 1
        assert len({scene.objects[1].name for scene in group}) == VARIANTS


def test_a_smaller_part_is_the_beginning_of_a_larger_one():
    assert part("ordinary", 5) == part("ordinary", 50)[:5]
    assert part("pairs", 5) == part("memorized", 105)[100:]


def test_more_scenes_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="1,000 scenes are asked for, but it has only 890"):
        part("pairs", 1000)


@pytest.mark.parametrize("name", PARTS)
def test_objects_lie_inside_and_apart(name):
    for scene in part(name, 200):
        assert all(0 <= o.left <= 64 - o.side and 0 <= o.top <= 64 - o.side for o in scene.objects)
        assert not any(a.overlaps(b) for a, b in pairs_of(scene))


def test_pixels_change_only_where_the_scene_says_an_object_is():
    for scene in part("ordinary", 12):
        image = np.asarray(scene.image()).astype(int)
        empty = background(scene.background, 64, np.random.default_rng(scene.seed)).astype(int)
        changed = (image != empty).any(2)
        for placed in scene.objects:
            square = np.s_[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side]
            assert changed[square].mean() > (0.05 if scene.background in ("white", "snow") else 0.2)
            changed[square] = False
        assert not changed.any()


def test_captions_say_what_is_there_and_where():
    scene = Scene((Placed("owl", 0, 8, 24), Placed("red apple", 40, 16, 24)), "noto", "a night sky", 0)
    assert captions_of(scene) == (
        "an owl and a red apple on a night sky",
        "a red apple and an owl on a night sky",
        "an owl left of a red apple on a night sky",
        "an owl left of a red apple",
        "an owl and a red apple",
    )
    below = replace(
        scene, objects=(Placed("owl", 0, 40, 24), Placed("key", 8, 0, 24), Placed("bus", 40, 0, 24))
    )
    assert (
        captions_of(replace(below, background="pink"))[2] == "an owl below a key, and a bus on a pink ground"
    )


def test_shards_are_read_with_all_captions_and_are_the_same_each_time(tmp_path):
    scenes = part("memorized", 6)
    for folder in ("a", "b"):
        write_part(tmp_path / folder, "memorized", scenes)
    shard = "memorized/memorized-00000.tar"
    assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()
    images = load_captioned(f"{tmp_path}/a/memorized?captions={tmp_path}/a/memorized/captions.json")
    assert [sample.captions for sample in images.samples] == [captions_of(scene) for scene in scenes]
    assert np.array_equal(np.asarray(images[3].rgb()), np.asarray(scenes[3].image()))
    with tarfile.open(tmp_path / "a" / shard) as tar:
        about = json.load(tar.extractfile("memorized_000003.json"))
    assert [(o["name"], o["left"], o["top"]) for o in about["objects"]] == [
        (o.name, o.left, o.top) for o in scenes[3].objects
    ]


def test_the_command_builds_a_part_once_and_names_the_parts_for_a_wrong_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    build(["--out", str(tmp_path), "--parts", "objects", "--number", "3"])
    build(["--out", str(tmp_path), "--parts", "objects", "--number", "3"])
    assert "3 scenes are there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="the parts are ordinary, memorized"):
        build(["--out", str(tmp_path), "--parts", "ordinary,cats"])
    assert not (tmp_path / "ordinary").exists()
