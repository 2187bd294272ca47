"""Open WebUI without a container, as on every Mac: here on Linux, in its sandbox, with everything real.

Its release does not work with the Python of a Debian 13. The box is given that of Debian 12, as somebody would who runs
it there, and is told so by `openwebui_python`.
"""

from __future__ import annotations

import pytest
import requests
from kit import Box, Lab, eventually

pytestmark = pytest.mark.lab

PYTHON = "/usr/bin/python3.11"
DATA = "/var/lib/boxwright/openwebui"
ENVIRONMENT = "/etc/boxwright/openwebui/openwebui.env"
# Debian 13 lacks a package that the one with venv depends on, and does not need: so its files alone are taken.
OLDER_PYTHON = """
sed -s s/trixie/bookworm/g /etc/apt/sources.list.d/*.list >/root/older.list
mv /root/older.list /etc/apt/sources.list.d/bookworm.list
apt-get update --quiet=2
apt-get install --quiet=2 --assume-yes --no-install-recommends python3.11 python3-pip-whl python3-setuptools-whl
cd /root && apt-get download --quiet=2 python3.11-venv && dpkg --extract python3.11-venv_*.deb /
"""


@pytest.fixture(scope="module")
def box(lab: Lab) -> Box:
    """A box on which Open WebUI runs without a container, and that has no Docker at all."""
    made = lab.boxes.get("native") or lab.up(
        "native", {"docker_enabled": False, "openwebui_run": "native", "openwebui_python": PYTHON}
    )
    # Without it nothing is changed: what is missing is said, and what would help.
    varied = made.with_variables("no-python", openwebui_python=None)
    refused = made.apply(inventory=varied).expect(2)
    assert refused.json["problems"][0]["code"] == "BW114"
    made.sh(OLDER_PYTHON)
    assert made.sh(f"{PYTHON} --version").startswith("Python 3.11")
    made.settle()
    return made


def test_the_page_is_served_and_its_administrator_chats(box: Box) -> None:
    page = box.http("GET", "")
    assert page.status_code == 200
    assert "Open WebUI" in page.text
    question = {
        "model": "local-llm",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "stream": False,
    }
    answer = box.http("POST", "api/chat/completions", headers=box.signed_in(), json=question)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip()
    # It came by the gateway's own listener for it, with its key.
    assert '"client":"open-webui"' in box.sh("cat /var/log/caddy/access.log")


def test_nobody_makes_an_account(box: Box) -> None:
    who = {"name": "x", "email": "x@example.org", "password": "not-admitted"}
    assert box.http("POST", "api/v1/auths/signup", json=who).status_code == 403


def test_it_listens_on_loopback_and_goes_nowhere(box: Box) -> None:
    assert box.sh("ss -Hltn 'sport = :8087'").split()[3] == "127.0.0.1:8087"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{box.address}:8087/", timeout=5)
    # The sandbox: of the network there is the box itself, and of the disk its own folder.
    pid = box.pid("openwebui")
    assert box.sh(f"stat -c %U /proc/{pid}").strip() == "openwebui"
    exposure = box.sh("systemd-analyze security --no-pager openwebui.service | tail -n 1").split()
    assert float(exposure[exposure.index("openwebui.service:") + 1]) <= 1.5


def test_its_secrets_are_roots(box: Box) -> None:
    assert box.sh(f"stat -c '%U:%G %a' {ENVIRONMENT}").strip() == "root:root 600"
    secret = box.secrets["openwebui_secret_key"]
    assert secret in box.sh(f"cat {ENVIRONMENT}")
    seen = box.exec("sh", "-c", "ps -eww -o args=; cat /etc/systemd/system/openwebui.service", user="nobody")
    assert secret not in seen


def test_verify_agrees(box: Box) -> None:
    checks = box.run("boxwright", "verify", "--json").json["checks"]
    found = [check for check in checks if check["role"] == "openwebui"]
    assert [check for check in found if check["outcome"] not in ("ok", "skipped")] == []
    assert len([check for check in found if check["outcome"] == "ok"]) >= 7


def test_a_second_run_changes_nothing_and_drift_is_repaired(box: Box) -> None:
    box.expect_settled()
    before = box.pid("openwebui")
    box.sh(f"echo WEBUI_NAME=mine >>{ENVIRONMENT}")
    changed = box.changes()
    assert changed == ["openwebui: write the environment"], changed
    # What it was started with is what is there again.
    assert box.pid("openwebui") == before
    box.sh(f"chown -R root: {DATA}")
    assert "openwebui: folder of data" in box.changes()
    assert box.sh(f"stat -c %U {DATA}").strip() == "openwebui"
    box.expect_settled()


def test_another_environment_is_another_process_and_accounts_stay(box: Box) -> None:
    before = box.pid("openwebui")
    varied = box.with_variables("renamed", openwebui_environment={"WEBUI_NAME": "Our model"})
    assert {"openwebui: write the environment", "openwebui: running"} <= set(box.changes(varied))
    assert box.pid("openwebui") != before
    assert "Our model" in box.http("GET", "api/config").json()["name"]
    assert box.signed_in()
    box.settled = False
    box.settle()


def test_it_comes_back_when_it_is_killed(box: Box) -> None:
    before = box.pid("openwebui")
    box.sh(f"kill -KILL {before}")
    eventually("another process runs", lambda: box.restarted("openwebui", before), 120)
    eventually("the page answers", lambda: box.http("GET", "health").status_code == 200, 120)


def test_it_can_be_taken_away_and_its_accounts_stay_until_they_are_purged(box: Box) -> None:
    """Last."""
    box.settled = False
    box.run("boxwright", "remove").expect()
    assert not box.succeeds("id openwebui")
    assert not box.succeeds("test -e /opt/boxwright/open-webui -o -e /etc/boxwright/openwebui")
    assert box.sh(f"stat -c '%U %a' {DATA}").split() == ["root", "700"]
    assert box.succeeds(f"test -s {DATA}/webui.db")
    again = box.run("boxwright", "remove", "--json").expect()
    assert again.json["hosts"][box.host]["changed"] == []
    box.run("boxwright", "remove", "--purge").expect()
    assert not box.succeeds(f"test -e {DATA}")
