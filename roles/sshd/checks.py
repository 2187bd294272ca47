"""What must hold of sshd."""

from typing import Any


def test_by_its_own_word(host: Any, box: Any) -> None:
    """sshd says of itself that it does as declared."""
    said = dict(line.split(" ", 1) for line in host.check_output("sshd -T").split("\n") if " " in line)
    assert said["passwordauthentication"] == ("yes" if box.sshd.passwords else "no")
    root = said["permitrootlogin"].replace("without-password", "prohibit-password")
    assert root == box.sshd.root
    if not box.sshd.passwords:
        assert said["kbdinteractiveauthentication"] == "no"


def test_it_offers_no_password(host: Any, box: Any) -> None:
    """The running sshd offers no password to whoever has no key."""
    if box.sshd.passwords:
        return
    port = host.check_output("sshd -T").split("port ", 1)[1].split()[0]
    options = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    refused = host.run(f"ssh {options} -o PreferredAuthentications=none -p {port} nobody@127.0.0.1 true")
    assert refused.rc == 255
    assert "password" not in refused.stderr.replace("(publickey", "(").split("Permission denied", 1)[-1]
    assert "Permission denied" in refused.stderr
