"""From values to bytes and back, by names or as objects; what is written and read here is stored elsewhere."""

from .base import Serializer
from .marked import function_serializer, is_foreign, refuse_foreign
from .names import NAMES, CompressedSerializer, checked_serializer, network_serializer
from .pickled import PickleSerializer
from .typed import JSONSerializer, MessagePackSerializer

__all__ = [
    "NAMES",
    "CompressedSerializer",
    "JSONSerializer",
    "MessagePackSerializer",
    "PickleSerializer",
    "Serializer",
    "checked_serializer",
    "function_serializer",
    "is_foreign",
    "network_serializer",
    "refuse_foreign",
]
