"""Merging values into a JSON document that is shared with others, so that they can be taken back. Pure functions.

A document is merged of three: what is there, what an earlier run put there, and what is wanted now. Objects are merged
key by key, lists by adding what is missing; any other value replaces the one that is there.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

Document = dict[str, Any]


class DuplicateKey(ValueError):
    """An object names one key twice; which of the two counts is not for us to decide."""


def load(text: str) -> Document:
    """The JSON object in `text`; an empty text is an empty object.

    Raises JSONDecodeError (with line and column), DuplicateKey, or ValueError when it is JSON but no object.
    """
    if not text.strip():
        return {}

    def without_duplicates(pairs: list[tuple[str, Any]]) -> Document:
        document = dict(pairs)
        if len(document) != len(pairs):
            twice = sorted({key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1})
            raise DuplicateKey(f"the key {', '.join(repr(key) for key in twice)} is set twice")
        return document

    document = json.loads(text, object_pairs_hook=without_duplicates)
    if not isinstance(document, dict):
        raise ValueError("the file holds no JSON object")
    return document


def merge(current: Mapping[str, Any], earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> Document:
    """`current` with `wanted` put in and what is in `earlier` alone taken back; the order of keys is kept."""
    return _put(take_back(current, _no_longer(earlier, wanted)), wanted)


def take_back(current: Mapping[str, Any], earlier: Mapping[str, Any]) -> Document:
    """`current` without what `earlier` put there: only where the value is still the one of `earlier`."""
    rest: Document = {}
    for key, value in current.items():
        if key not in earlier:
            rest[key] = deepcopy(value)
            continue
        mine = earlier[key]
        if isinstance(value, dict) and isinstance(mine, Mapping):
            left: Any = take_back(value, mine)
        elif isinstance(value, list) and isinstance(mine, list):
            left = [item for item in value if item not in mine]
        elif value == mine:
            continue
        else:
            left = deepcopy(value)
        # An object or a list that held nothing but ours goes with it; one that was empty before stays.
        if left or not value:
            rest[key] = left
    return rest


def _no_longer(earlier: Mapping[str, Any], wanted: Mapping[str, Any]) -> Document:
    """The part of `earlier` that `wanted` does not hold."""
    gone: Document = {}
    for key, value in earlier.items():
        if key not in wanted:
            gone[key] = value
        elif isinstance(value, Mapping) and isinstance(wanted[key], Mapping):
            part = _no_longer(value, wanted[key])
            if part:
                gone[key] = part
        elif isinstance(value, list) and isinstance(wanted[key], list):
            items = [item for item in value if item not in wanted[key]]
            if items:
                gone[key] = items
    return gone


def _put(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> Document:
    result: Document = dict(current)
    for key, value in wanted.items():
        there = result.get(key)
        if isinstance(there, dict) and isinstance(value, Mapping):
            result[key] = _put(there, value)
        elif isinstance(there, list) and isinstance(value, list):
            result[key] = there + [item for item in value if item not in there]
        else:
            result[key] = deepcopy(value)
    return result
