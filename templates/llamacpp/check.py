"""Looks whether a server can be started as the JSON file named on the command line says: reads the model's header.

Ends with 1, and one sentence on standard error, for a file that is no GGUF and for a context longer than the model's.
The form of the header: https://github.com/ggml-org/gguf, versions 2 and 3 (little endian).
"""

import json
import struct
import sys
from pathlib import Path

# Types of values: those of a fixed size, by struct's letters; then texts and arrays.
FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


class Reader:
    """Values of a file, one after the other; EOFError when it ends before one does."""

    def __init__(self, file):
        self.file = file

    def take(self, count):
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def number(self, letter):
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self):
        return self.take(self.number("Q")).decode(errors="replace")

    def value(self, kind):
        if kind in FIXED:
            return self.number(FIXED[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a value of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in FIXED:
            self.file.seek(count * struct.calcsize("<" + FIXED[inner]), 1)
        else:
            for _ in range(count):
                self.value(inner)
        return None


def header_value(path, ending):
    """The value of the first key that ends so, None when the header has none; ValueError for what is no GGUF file."""
    with Path(path).open("rb") as file:
        reader = Reader(file)
        try:
            if reader.take(4) != b"GGUF":
                raise ValueError("is not a GGUF file")
            version = reader.number("I")
            if version not in (2, 3):
                raise ValueError(f"is a GGUF file of version {version}; 2 and 3 are known")
            reader.take(8)
            for _ in range(reader.number("Q")):
                name = reader.text()
                value = reader.value(reader.number("I"))
                if name.endswith(ending):
                    return value
        except (EOFError, OverflowError, MemoryError) as error:
            raise ValueError("ends in the middle of its header") from error
    return None


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    path = settings["model"]
    try:
        longest = header_value(path, ".context_length")
    except ValueError as error:
        sys.exit(f"{path} {error}")
    except OSError as error:
        sys.exit(f"{path} cannot be read: {error.strerror}")
    if longest is not None and settings["context"] > longest:
        sys.exit(
            f"the context of {settings['context']} tokens is longer than that of the model, which is {longest}: "
            f"set `context` of the model {settings['alias']} in `inference_models` to {longest} at most"
        )


if __name__ == "__main__":
    main()
