"""Which columns of a table hold images, captions, classes and ids, and what is in a caption's cell."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from data.sources.classes import class_names
from data.sources.rows import caption_in_json

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL = ("label", "class")
CAPTION = ("text", "caption", "captions", "prompt", "txt", "json")
WITHIN = ("caption", "captions", "text", "raw", "sentence", "prompt")  # fields of a caption that is no text
ID = ("id", "key", "__key__")


class Columns(NamedTuple):
    image: str
    caption: str | None
    label: str | None
    id: str | None
    within: tuple[str, ...] = ()  # the way to a caption in nested cells

    def names(self) -> list[str]:
        return [name for name in dict.fromkeys(self[:4]) if name]

    def texts(self) -> list[str]:
        """All but the images."""
        return [name for name in self.names() if name != self.image]

    def notes(self) -> tuple[str, ...]:
        """Where captions come from, if not from a column of captions."""
        return () if self.caption or not self.label else (f"captions by class ({self.label!r})",)


def holds_bytes(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def holds_images(kind: "pa.DataType") -> bool:
    """The image type of Hugging Face, a struct of bytes and path, or plain bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    return holds_bytes(kind)


def choose(schema: "pa.Schema", options: dict[str, str], source: str) -> Columns:
    """The given columns, else the ones with usual names; ValueError, naming all, where one stays open.

    A caption may be a field of a column: `sentences.raw`.
    """
    options, within = dict(options), ()
    if options.get("caption", "") not in ("", *schema.names):
        options["caption"], *within = options["caption"].split(".")
    for role in ("image", "caption", "label", "id"):
        if role in options and options[role] not in schema.names:
            raise ValueError(f"{source} has no column {options[role]!r}: it has {columns_of(schema)}")
    pictures = [field.name for field in schema if holds_images(field.type)]
    if not pictures:
        raise ValueError(f"{source} has no column with the bytes of images in it: it has {schema.names}")
    usual = [name for name in IMAGE if name in pictures] or (pictures if len(pictures) == 1 else [])
    image = options.get("image") or next(iter(usual), None)
    caption = options.get("caption") or next((name for name in CAPTION if name in schema.names), None)
    label = choose_label(schema, options, caption, source)
    has_caption = caption or label or "captions" in options  # these are in a file
    for role, column in (("image", image), ("caption", has_caption)):
        if not column:
            given = "&".join(f"{name}={value}" for name, value in {**options, role: "COLUMN"}.items())
            raise ValueError(
                f"{source}: which column is the {role}? Say it as '{source}?{given}'; it has "
                f"{columns_of(schema)}"
            )
    if within and caption and (field := field_at(schema.field(caption).type, within)):
        raise ValueError(
            f"{source}: the column {caption!r} has no field {field!r}: it has {columns_of(schema)}"
        )
    if image not in pictures:
        raise ValueError(f"{source}: the column {image!r} holds no images; {pictures} would")
    if unused := [name for name in pictures if name != image]:
        log.warning("%s: images of %s are not used; ?image= reads another column", source, unused)
    key = options.get("id") or next((name for name in ID if name in schema.names), None)
    return Columns(image, caption, label, key, tuple(within))


def columns_of(schema: "pa.Schema") -> list[str]:
    """The names of columns; of nested ones with the fields in which captions may be (`sentences.raw`)."""
    return [
        f"{field.name}.{inner}" if inner else field.name
        for field in schema
        for inner in ([] if holds_images(field.type) else text_fields(field.type)) or [""]
    ]


def item(kind: "pa.DataType") -> "pa.DataType":
    """What lists, of lists or not, hold."""
    import pyarrow.types as types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def text_fields(kind: "pa.DataType") -> list[str]:
    """The ways to the texts in a nested type, such as `raw`; none for a plain one."""
    import pyarrow.types as types

    kind = item(kind)
    if not types.is_struct(kind):
        return []
    ways = []
    for field in kind:
        deeper = item(field.type)
        if types.is_string(deeper) or types.is_large_string(deeper):
            ways.append(field.name)
        ways += [f"{field.name}.{way}" for way in text_fields(field.type)]
    return ways


def field_at(kind: "pa.DataType", way: Iterable[str]) -> str | None:
    """The first name of a way that its place in a nested type does not have; None if all are there."""
    import pyarrow.types as types

    for name in way:
        kind = item(kind)
        if not types.is_struct(kind) or kind.get_field_index(name) < 0:
            return name
        kind = kind.field(name).type
    return None


def choose_label(
    schema: "pa.Schema", options: dict[str, str], caption: str | None, source: str
) -> str | None:
    """The given column of classes, else captions that are classes, a usual name, or the only one there is.

    ValueError for a given one without names: a number says nothing of a class.
    """
    import pyarrow.types as types

    classes = class_names(schema)
    if label := options.get("label"):
        kind = schema.field(label).type
        if label not in classes and not types.is_string(kind) and not types.is_large_string(kind):
            raise ValueError(
                f"{source}: the column {label!r} holds no names of classes, but {kind}; give a column of "
                f"text or a datasets.ClassLabel, of which there are {sorted(classes)}"
            )
        return label
    if caption in classes:
        return caption
    usual = [name for name in LABEL if name in classes] or (list(classes) if len(classes) == 1 else [])
    return next(iter(usual), None)


def captions_of(cell: Any, within: tuple[str, ...] = ()) -> Any:
    """The captions in a cell: a text, or those of nested lists and fields in one list.

    `within` is the way through the fields; without it the first usual name leads on. A column `json` of
    webdataset's holds the caption inside, as text or as a struct.
    """
    if isinstance(cell, list):
        each = [captions_of(part, within) for part in cell]
        return [text for part in each for text in (part if isinstance(part, list) else [part])]
    if isinstance(cell, dict):
        name = next(iter(within), None) or next((name for name in WITHIN if cell.get(name)), None)
        return captions_of(cell.get(name), within[1:])
    return caption_in_json(cell) if isinstance(cell, str) and cell.startswith("{") else cell
