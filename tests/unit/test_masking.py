"""Registered secrets print as ***: in every encoding, in pieces, through every way out of the process."""

import base64
import io
import itertools
import json
import subprocess
import sys
import textwrap
import urllib.parse

import pytest

from boxwright import masking

SECRET = "c0rrect'horse/battery+staple$\"ä"
TOKEN = "tOkEn-0123456789_abcdefghij"


@pytest.fixture(autouse=True)
def registered():
    masking.forget()
    masking.register([SECRET, TOKEN])
    yield
    masking.forget()


def through(chunks):
    """What a stream shows of `chunks` when all is said."""
    stream = masking.MaskedStream(io.StringIO())
    for chunk in chunks:
        assert stream.write(chunk) == len(chunk)
    stream.finish()
    return stream.wrapped.getvalue()


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        repr(SECRET)[1:-1],
        urllib.parse.quote(SECRET),
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.quote_plus(SECRET),
        base64.b64encode(SECRET.encode()).decode().rstrip("="),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
        SECRET.replace("$", "$$"),
        "c0rrect'\"'\"'horse/battery+staple$\"ä",  # inside single quotes of a shell
        SECRET.replace("'", "&#x27;").replace('"', "&quot;"),
    ],
)
def test_every_form_is_masked(form):
    assert masking.mask(f"before {form} after") == "before *** after"


@pytest.mark.parametrize("user", ["a", "ab", "abc", "boxwright"])
def test_base64_of_user_and_password_hides_the_password(user):
    """Basic authentication: the password begins anywhere in a group of base64."""
    header = base64.b64encode(f"{user}:{TOKEN}".encode()).decode()
    masked = masking.mask(f"Authorization: Basic {header}")
    assert "***" in masked
    shown = masked.removeprefix("Authorization: Basic ")
    before, after = shown.split("***")
    # What is left on both sides is too short to hold more than three characters of the password.
    assert base64.b64encode(f"{user}:".encode()).decode().rstrip("=")[:-1].startswith(before[:-3])
    assert len(after.rstrip("=")) <= 3


def test_short_values_are_left_alone():
    masking.register(["admin", "12345", ""])
    assert masking.mask("admin 12345") == "admin 12345"


def test_lines_of_a_key_are_masked_where_something_stands_before_each():
    masking.register(["-----BEGIN KEY-----\nabcdefghijkl\nmnopqrstuvwx\n-----END KEY-----\n"])
    assert masking.mask("[box] abcdefghijkl\n[box] mnopqrstuvwx\n") == "[box] ***\n[box] ***\n"


def test_a_secret_that_holds_or_overlaps_another_one_goes_whole():
    masking.register(["abcdefgh", "abcdefghijkl", "ijklmnop"])
    assert masking.mask("abcdefghijkl!") == "***!"
    assert masking.mask("abcdefghijklmnop!") == "***!"


@pytest.mark.parametrize("secret", [SECRET, TOKEN, base64.b64encode(SECRET.encode()).decode().rstrip("=")])
def test_split_anywhere_over_two_writes(secret):
    text = f"value={secret};\n"
    for at in range(len(text) + 1):
        assert through([text[:at], text[at:]]) == "value=***;\n"


def test_one_character_at_a_time():
    assert through(f"a{SECRET}b{TOKEN}{TOKEN}c") == "a***b******c"


def test_split_in_three_with_overlapping_beginnings():
    masking.register(["aaaaaab", "aaaaaaac"])
    text = "aaaaaaaab aaaaaaac."
    for first, second in itertools.combinations(range(len(text)), 2):
        assert through([text[:first], text[first:second], text[second:]]) == masking.mask(text)


def test_harmless_text_goes_through_at_once():
    """Progress: what was written is there before the line ends, but for an end that could begin a secret."""
    stream = masking.MaskedStream(io.StringIO())
    stream.write("downloading 10 %\r")
    assert stream.wrapped.getvalue() == "downloading 10 %\r"
    stream.write("Press enter to execute...")
    assert stream.wrapped.getvalue().endswith("execute...")
    stream.write(" tOkEn-01")
    assert stream.wrapped.getvalue().endswith("execute... ")
    stream.write("x")
    assert stream.wrapped.getvalue().endswith("execute... tOkEn-01x")


def test_flush_does_not_give_away_half_a_secret():
    stream = masking.MaskedStream(io.StringIO())
    stream.write(TOKEN[:10])
    stream.flush()
    assert stream.wrapped.getvalue() == ""
    stream.write(TOKEN[10:] + "\n")
    assert stream.wrapped.getvalue() == "***\n"


def test_what_waits_is_not_lost():
    assert through(["the end: tOkEn-"]) == "the end: tOkEn-"


def test_a_secret_registered_while_its_beginning_waits():
    stream = masking.MaskedStream(io.StringIO())
    stream.write("tOkEn-")
    masking.register(["tOkEn-99999"])
    stream.write("99999\n")
    assert stream.wrapped.getvalue() == "***\n"


def test_bytes_are_masked_too():
    raw = io.BytesIO()
    stream = masking.MaskedStream(io.TextIOWrapper(raw, encoding="utf-8"))
    encoded = f"x {SECRET} y\n".encode()
    for at in range(0, len(encoded), 3):  # also in the middle of a character
        assert stream.buffer.write(encoded[at : at + 3]) == len(encoded[at : at + 3])
    stream.flush()
    assert raw.getvalue() == b"x *** y\n"


def test_the_stream_looks_like_the_one_behind_it():
    behind = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace", line_buffering=True)
    stream = masking.MaskedStream(behind)
    assert (stream.encoding, stream.errors, stream.line_buffering) == ("latin-1", "replace", True)
    assert stream.isatty() is False
    stream.reconfigure(line_buffering=False)
    assert behind.line_buffering is False
    with pytest.raises(TypeError):
        stream.write(b"bytes")


def test_install_can_be_repeated(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    masking.install()
    first = sys.stdout
    masking.install()
    assert sys.stdout is first
    assert isinstance(sys.stderr, masking.MaskedStream)


def ways_out(program):
    """Runs `program` after masking TOKEN, in a process of its own; returns exit code, stdout and stderr."""
    start = f"import logging, sys, click\nfrom boxwright import masking\nTOKEN = {TOKEN!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("program", "stdout", "stderr"),
    [
        ("masking.register([TOKEN]); masking.install(); print('a', TOKEN)", "a ***\n", ""),
        ("masking.install(); masking.register([TOKEN]); print(TOKEN, file=sys.stderr)", "", "***\n"),
        (
            "masking.install(); masking.register([TOKEN]); click.echo(TOKEN); click.echo(TOKEN, err=True)",
            "***\n",
            "***\n",
        ),
        ("masking.install(); masking.register([TOKEN]); click.echo(TOKEN.encode())", "***\n", ""),
        ("click.echo('x'); masking.install(); masking.register([TOKEN]); click.echo(TOKEN)", "x\n***\n", ""),
        ("masking.install(); masking.register([TOKEN]); sys.stdout.buffer.write(TOKEN.encode())", "***", ""),
        (
            "masking.install(); masking.register([TOKEN]); click.secho(TOKEN[:7], nl=False); click.echo(TOKEN[7:])",
            "***\n",
            "",
        ),
        (
            "logging.basicConfig(); masking.install(); masking.register([TOKEN]); logging.warning('see %s', TOKEN)",
            "",
            "WARNING:root:see ***\n",
        ),
        (
            "masking.install(); masking.register([TOKEN]); logging.warning('see %s', TOKEN)",
            "",
            "WARNING:root:see ***\n",
        ),
        (
            "masking.install(); masking.register([TOKEN]); sys.stdout.write('ends with ' + TOKEN[:4])",
            "ends with tOkE",
            "",
        ),
        ("masking.install(); masking.register([TOKEN]); sys.exit('no: ' + TOKEN)", "", "no: ***\n"),
    ],
)
def test_ways_out_of_a_process(program, stdout, stderr):
    code, out, err = ways_out(program)
    assert (out, err) == (stdout, stderr)
    assert code in (0, 1)


def test_a_traceback_is_masked():
    code, _, err = ways_out("masking.install(); masking.register([TOKEN])\nraise ValueError('wrong: ' + TOKEN)")
    assert code == 1
    assert err.splitlines()[-1] == "ValueError: wrong: ***"
    assert TOKEN not in err


def test_a_large_output_stays_fast():
    """10,000 lines with 20 secrets registered must not be felt. The bound is generous: usual is 0.3 s."""
    import time

    masking.register(f"secret-number-{n}-" + "x" * 40 for n in range(20))
    stream = masking.MaskedStream(io.StringIO())
    line = "[box1] some ordinary output of a command with words and 12345 numbers in it, as it comes\n"
    start = time.monotonic()
    for _ in range(10_000):
        stream.write(line)
    assert time.monotonic() - start < 10
