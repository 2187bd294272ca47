"""The tiny model of the tests: the same bytes each time, in the form that safetensors and tokenizers describe."""

import json
import struct
from pathlib import Path

from tests.doubles import tiny_mlx


def test_the_same_call_makes_the_same_bytes(tmp_path: Path) -> None:
    once = tiny_mlx.files()
    assert tiny_mlx.files() == once
    other = tiny_mlx.files(seed=2)
    assert {name for name in once if once[name] != other[name]} == {"model.safetensors"}
    assert len(other["model.safetensors"]) == len(once["model.safetensors"])
    tiny_mlx.write(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == once


def test_the_weights_are_complete_and_follow_each_other() -> None:
    data = tiny_mlx.files()["model.safetensors"]
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "mlx"}
    end = 0
    for tensor in header.values():
        size = 4
        for dimension in tensor["shape"]:
            size *= dimension
        assert tensor["data_offsets"] == [end, end + size]
        end += size
    assert len(data) == 8 + length + end
    assert header["lm_head.weight"]["shape"] == [300, 64]
    assert len([name for name in header if name.startswith("model.layers.")]) == 2 * 9


def test_the_tokenizer_has_every_byte_and_every_pair() -> None:
    tokenizer = json.loads(tiny_mlx.files()["tokenizer.json"])
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(300))
    assert all("".join(pair) in vocabulary for pair in tokenizer["model"]["merges"])
    assert len([token for token in vocabulary if len(token) == 1]) == 256
