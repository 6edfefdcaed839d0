"""Objects that a prompt names are found where they are, by retrieval among all listed objects."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from infer.metrics.objects import Found, ObjectSearch, read_objects, share_found

COLOURS = {
    "a red box": (255, 0, 0),
    "a green box": (0, 255, 0),
    "a box": (0, 0, 255),
    "nothing": (10, 10, 10),
}


class ColourClip:
    """A CLIP that knows the colours of a few words; an image is the mean of its colours."""

    towers = SimpleNamespace(texts=lambda texts: torch.tensor([COLOURS[text] for text in texts]).float())

    def image_features(self, images):
        return torch.stack([torch.from_numpy(np.asarray(image).mean((0, 1))).float() for image in images])


def scene(size=(64, 64), **boxes):
    """A dark image with boxes: name=(left, top, right, bottom) in px."""
    image = Image.new("RGB", size, COLOURS["nothing"])
    for name, box in boxes.items():
        image.paste(COLOURS[f"a {name} box"], box)
    return image


@pytest.fixture
def search():
    return ObjectSearch(ColourClip(), [*COLOURS])


def test_objects_are_found_where_they_are(search):
    image = scene(red=(0, 0, 24, 24), green=(40, 40, 64, 64))
    red, green = search([image], ["A red box and a green box"])[0]
    assert red.name == "a red box" and max(red.centre) < 0.5
    assert green.name == "a green box" and min(green.centre) > 0.5


def test_what_is_named_and_not_there_is_not_found(search):
    (found,) = search([scene(red=(0, 0, 24, 24))], ["a green box"])[0]
    assert found == Found("a green box", None)
    assert share_found([found]) == 0


def test_only_whole_names_count_and_each_once(search):
    assert search.named("a red box, a red box and a boxer") == ["a red box"]
    assert search.named("a box beside a green box") == ["a box", "a green box"]


def test_a_prompt_that_names_nothing_has_no_share(search):
    assert search([scene()], ["a cat"]) == [[]]
    assert np.isnan(share_found([]))


def test_a_batch_is_its_images_one_by_one_also_at_another_size(search):
    images = [scene(red=(0, 0, 24, 24)), scene((96, 64), green=(70, 0, 96, 30))]
    prompts = ["a red box and a green box"] * 2
    assert search(images, prompts) == [search([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert share_found(search(images, prompts)[0]) == 0.5


def test_a_list_with_a_repeated_object_is_refused(tmp_path):
    path = tmp_path / "objects.txt"
    path.write_text("a cat\na dog\n\na cat\n")
    with pytest.raises(ValueError, match="different objects"):
        read_objects(str(path))
