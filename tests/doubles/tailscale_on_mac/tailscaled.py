#!@PYTHON@ -ISB
"""Tailscale's daemon, as far as Serve on port 443 goes. See the package."""

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from urllib.parse import urlsplit

PLACE, CERTIFICATES = Path("@KEPT@"), Path("@CERTIFICATES@")
ADDRESS, VISITOR = "@ADDRESS@", "@VISITOR@"
# What a caller says of this is not handed on.
OURS = ("x-forwarded-", "tailscale-", "connection:")


def target():
    """Where the root of what is served leads; None while nothing is, or the machine is in no tailnet."""
    kept = json.loads(PLACE.read_text()) if PLACE.exists() else {}
    found = [server["Handlers"]["/"]["Proxy"] for server in ((kept.get("serve") or {}).get("Web") or {}).values()]
    return found[0] if found and kept.get("up") else None


async def copy(reader, writer):
    """Each piece as soon as it is here."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def serve(reader, writer):
    """One request, then the connection ends."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        lines = [line for line in head[:-2] if not line.lower().startswith(OURS)]
        host = next((line[5:].strip() for line in lines if line.lower().startswith("host:")), "")
        lines += [f"X-Forwarded-For: {VISITOR}", f"X-Forwarded-Host: {host}", "X-Forwarded-Proto: https"]
        where = urlsplit(target() or "")
        # `https+insecure`: the certificate of what is on this very machine is not looked at.
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        there = await asyncio.open_connection(where.hostname, where.port, ssl=trust)
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
        return
    there[1].write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))


async def main():
    """For ever."""
    while not (found := sorted(CERTIFICATES.glob("*.crt"))):
        await asyncio.sleep(1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(found[0], found[0].with_suffix(".key"))
    async with await asyncio.start_server(serve, ADDRESS, 443, ssl=context) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
