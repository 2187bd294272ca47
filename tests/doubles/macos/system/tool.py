"""Every program that the double has of its own: the name it was called by, the first argument, says which."""

import signal
import sys

sys.path.insert(0, "/usr/libexec/double/system")

from registry import function

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    name = sys.argv[1].rsplit("/", 1)[-1]
    sys.exit(function(name)(name, sys.argv[2:]))
