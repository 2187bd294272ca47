"""pyinfra connectors: `boxwright` (SSH without Nagle's delay) and `boxwright-local` (the machine boxwright runs on)."""
