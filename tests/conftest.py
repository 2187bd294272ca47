"""What holds for all tests."""

import signal

import pytest

# A shell starts what runs in the background with Ctrl-C ignored, and its children inherit that: tests that send it
# would wait for nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were tried twice: pytest-rerunfailures names them alone, and a first try that fails has a cause."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"first try of {report.nodeid}", sep="-")
        terminalreporter.line("\n".join(report.longreprtext.splitlines()[-25:]))
