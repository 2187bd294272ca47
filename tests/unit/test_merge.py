"""Values put into a JSON document of others, and taken back."""

import json

import pytest

from boxwright.operations.merge import DuplicateKey, load, merge, take_back

OURS = {"live-restore": True, "log-opts": {"max-size": "10m"}, "insecure-registries": ["a:5000"]}
THEIRS = {"zeta": 1, "log-opts": {"tag": "x", "max-size": "1m"}, "insecure-registries": ["b:5000"], "alpha": None}


def test_what_others_wrote_stays_where_it_was():
    merged = merge(THEIRS, {}, OURS)
    assert merged == {
        "zeta": 1,
        "log-opts": {"tag": "x", "max-size": "10m"},
        "insecure-registries": ["b:5000", "a:5000"],
        "alpha": None,
        "live-restore": True,
    }
    assert list(merged) == ["zeta", "log-opts", "insecure-registries", "alpha", "live-restore"]
    assert THEIRS["log-opts"] == {"tag": "x", "max-size": "1m"}, "the argument was changed"


def test_again_changes_nothing():
    merged = merge(THEIRS, {}, OURS)
    assert merge(merged, OURS, OURS) == merged


def test_what_is_no_longer_wanted_goes():
    merged = merge({"own": [1]}, {}, OURS)
    later = {"log-opts": {"max-file": "3"}, "insecure-registries": ["c:5000"]}
    assert merge(merged, OURS, later) == {"own": [1], "log-opts": {"max-file": "3"}, "insecure-registries": ["c:5000"]}


def test_taken_back_but_not_what_somebody_changed():
    merged = merge({"own": 1}, {}, OURS)
    assert take_back(merged, OURS) == {"own": 1}
    merged["live-restore"] = False
    merged["log-opts"]["tag"] = "theirs"
    merged["insecure-registries"].append("theirs:5000")
    assert take_back(merged, OURS) == {
        "own": 1,
        "live-restore": False,
        "log-opts": {"tag": "theirs"},
        "insecure-registries": ["theirs:5000"],
    }


def test_an_object_that_was_empty_before_stays():
    assert take_back({"log-opts": {}, "x": []}, {"log-opts": {"max-size": "10m"}, "x": [1]}) == {
        "log-opts": {},
        "x": [],
    }


def test_another_type_in_the_way_is_replaced():
    assert merge({"log-opts": "none"}, {}, OURS)["log-opts"] == {"max-size": "10m"}
    assert merge({"insecure-registries": "a"}, {}, OURS)["insecure-registries"] == ["a:5000"]


def test_load():
    assert load("") == {} == load(" \n")
    assert load('{"a": {"b": 1}}') == {"a": {"b": 1}}
    with pytest.raises(DuplicateKey, match="'b' is set twice"):
        load('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(ValueError, match="no JSON object"):
        load("[1]")
    with pytest.raises(json.JSONDecodeError) as error:
        load('{\n  "a": 1,\n}\n')
    assert (error.value.lineno, error.value.colno) == (3, 1)
