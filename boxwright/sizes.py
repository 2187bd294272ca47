"""Numbers of bytes in words."""


def human(count: float | None) -> str:
    """Bytes as people say them, in powers of 1024 with one decimal; "unknown" for None."""
    if count is None:
        return "unknown"
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{int(count)} B"
