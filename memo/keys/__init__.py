"""From a call to its key, in every process the same; nothing here looks at a store or calls the decorated function."""

from .binding import Binding, is_plain
from .calls import CallKeys, Shape, describe
from .encode import encode, is_value_class, register_key_type
from .template import Template

__all__ = [
    "Binding",
    "CallKeys",
    "Shape",
    "Template",
    "describe",
    "encode",
    "is_plain",
    "is_value_class",
    "register_key_type",
]
