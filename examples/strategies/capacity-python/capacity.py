"""Requests in proportion to what a node can take: its weight in the registry, times a number in its metadata.

The same strategy as examples/strategies/capacity, in Python. Parameters, all optional:
{"field": "capacity", "default": 1}. A node that does not have the field counts as `default`; so does one whose field
is no number, which is logged.
"""

import json
import math

import wit_world
from componentize_py_types import Err
from wit_world.imports import host
from wit_world.imports.types import Answer, Decision, Input, Node

# Weights are whole numbers: hundredths of a capacity still count.
SCALE = 100
LARGEST_WEIGHT = 2**32 - 1


class WitWorld(wit_world.WitWorld):
    def weigh(self, input: Input) -> Answer:
        field, default = parameters(input.parameters)
        decisions = [
            Decision(weight(node.weight, capacity(node, field, default)), node.priority)
            for node in input.nodes
        ]
        return Answer(decisions, ask_again_seconds=None)


def parameters(text: str) -> tuple[str, float]:
    """The field's name, and what counts where it is missing."""
    given = json.loads(text)
    unknown = set(given) - {"field", "default"}
    if unknown:
        raise Err(f"unknown parameters: {', '.join(sorted(unknown))}")
    return given.get("field", "capacity"), float(given.get("default", 1))


def capacity(node: Node, field: str, default: float) -> float:
    """What a node says of itself, or the default."""
    value = dict(node.metadata).get(field)
    if value is None:
        return default
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0 <= number <= 1e6:
        return number
    host.log(host.Level.WARNING, f"{node.id}: {field}: {value!r} is no capacity")
    return default


def weight(registered: int, capacity: float) -> int:
    """A node that can take anything at all keeps a weight."""
    least = int(registered > 0 and capacity > 0)
    return min(max(round(registered * capacity * SCALE), least), LARGEST_WEIGHT)
