"""What a TFDS data set may say of its features: TFDS imports whatever module they name, so they may name TFDS alone."""

import re
from collections.abc import Iterator
from typing import Any

from hiermusic.errors import UserError

_OURS = re.compile(r"tensorflow_datasets\.core\.features\.\w+\.\w+")


def refuse_code(features: Any) -> None:
    """UserError where a `feature_pb2.Feature`, or one inside it, names code that is not TFDS's own."""
    for feature in _inside(features):
        if not _OURS.fullmatch(feature.python_class_name):
            name = feature.python_class_name[:80]
            raise UserError(f"its features name the class {name!r}, which is none of TFDS's own: data may name no code")
        if feature.json_feature.json:  # only a class of one's own keeps itself so, and it may name others
            raise UserError("its features hold JSON of a class that is none of TFDS's own: data may name no code")


def _inside(message: Any) -> Iterator[Any]:
    if message.DESCRIPTOR.name == "Feature":
        yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is None:
                continue
            value = value.values()
        elif hasattr(value, "ListFields"):
            value = [value]
        for part in value:
            yield from _inside(part)
