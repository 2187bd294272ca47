"""What holds for all tests."""

import signal

# A shell starts what runs in the background with Ctrl-C ignored, and its children inherit that: tests that send it
# would wait for nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
