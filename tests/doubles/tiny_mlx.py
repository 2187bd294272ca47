"""A model that MLX's server really runs, small enough to be made by a test: a Llama of 2 layers and 300 tokens.

Its weights are random numbers, so what it says means nothing, but it says it by the real path: tokenizer, chat
template, layers, sampling. The same call makes the same bytes everywhere, so its checksums can be declared like those
of a published model. Nothing but the standard library is needed; the formats are those that the libraries `safetensors`
and `tokenizers` document.

As a program it writes the folder that is named on its command line: `python tests/doubles/tiny_mlx.py FOLDER`.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

HIDDEN, INNER, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 2048
SPECIAL = ("<|start|>", "<|end|>", "<|pad|>")
# 41 pairs of letters, so that with 256 bytes and 3 special tokens there are 300.
LETTERS = "thheineranreonatenndtiesorteofedisitalarsttontngsehaasouiolevecomedehiriroicneeara"
PAIRS = [LETTERS[place : place + 2] for place in range(0, len(LETTERS), 2)]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def files(seed: int = 1) -> dict[str, bytes]:
    """The model's files by name. Another `seed` is another model of the same size."""
    vocabulary = _vocabulary()
    return {
        "config.json": _json(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": HIDDEN,
                "intermediate_size": INNER,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS,
                "rms_norm_eps": 1e-05,
                "vocab_size": len(vocabulary),
                "max_position_embeddings": CONTEXT,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "torch_dtype": "float32",
                "bos_token_id": vocabulary[SPECIAL[0]],
                "eos_token_id": vocabulary[SPECIAL[1]],
            }
        ),
        "model.safetensors": _safetensors(dict(_weights(seed, vocabulary))),
        "tokenizer.json": _json(_tokenizer(vocabulary)),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": SPECIAL[0],
                "eos_token": SPECIAL[1],
                "pad_token": SPECIAL[2],
                "model_max_length": CONTEXT,
                "clean_up_tokenization_spaces": False,
                "chat_template": TEMPLATE,
            }
        ),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte (OpenAI's GPT-2 table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _vocabulary() -> dict[str, int]:
    tokens = [*_byte_characters().values(), *PAIRS, *SPECIAL]
    return {token: number for number, token in enumerate(tokens)}


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    whole = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **whole} for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in PAIRS],
        },
    }


def _weights(seed: int, vocabulary: dict[str, int]) -> Iterator[tuple[str, tuple[tuple[int, ...], bytes]]]:
    """Names, shapes and values (little-endian float32) of the tensors, as Llama models name them."""
    numbers = random.Random(seed)

    def row(width: int) -> bytes:
        return struct.pack(f"<{width}f", *(numbers.uniform(-0.3, 0.3) for _ in range(width)))

    def matrix(height: int, width: int) -> tuple[tuple[int, ...], bytes]:
        return (height, width), b"".join(row(width) for _ in range(height))

    ones = (HIDDEN,), struct.pack(f"<{HIDDEN}f", *[1.0] * HIDDEN)
    yield "model.embed_tokens.weight", matrix(len(vocabulary), HIDDEN)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part in "qkvo":
            yield f"{name}.self_attn.{part}_proj.weight", matrix(HIDDEN, HIDDEN)
        yield f"{name}.mlp.gate_proj.weight", matrix(INNER, HIDDEN)
        yield f"{name}.mlp.up_proj.weight", matrix(INNER, HIDDEN)
        yield f"{name}.mlp.down_proj.weight", matrix(HIDDEN, INNER)
        yield f"{name}.input_layernorm.weight", ones
        yield f"{name}.post_attention_layernorm.weight", ones
    yield "model.norm.weight", ones
    # Only what is ASCII is ever said: other bytes make no text of their own, and the end is that of `max_tokens`.
    silent = bytes(4 * HIDDEN)
    rows = (row(HIDDEN) if token.isascii() and token not in SPECIAL else silent for token in vocabulary)
    yield "lm_head.weight", ((len(vocabulary), HIDDEN), b"".join(rows))


def _safetensors(tensors: dict[str, tuple[tuple[int, ...], bytes]]) -> bytes:
    """The file: length of the header (8 bytes, little-endian), header in JSON, then the values one after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + len(values)]}
        end += len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(values for _, values in tensors.values())


def write(folder: Path, seed: int = 1) -> None:
    """Write the model's files into `folder`, which is made when it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files(seed).items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
