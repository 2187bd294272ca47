"""A small certificate authority on the box, made with openssl: for a server that has none of its own.

The root signs nothing but the certificate of the box. Its key, and the root itself, are readable by root alone.
"""

from collections.abc import Sequence
from ipaddress import ip_address

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# Days. Apple's systems refuse certificates of more than 825 days, also from an authority that was installed by hand
# (support.apple.com/103769); one of 397 days is accepted by every client.
ROOT_DAYS, LEAF_DAYS, RENEWED_BEFORE = 3650, 397, 30

# Beside the certificate: its digest and the names in it, written last.
NOTE = ".note"

# $1 folder of the authority, $2 certificate, $3 its key, $4 group that reads the key, $5 names. Prints why a new
# certificate is needed, or nothing.
_EXAMINE = f"""
root=$1/root.crt root_key=$1/root.key leaf=$2 key=$3 group=$4 names=$5
day=86400
same() {{ [ "$(openssl x509 -in "$1" -noout -pubkey 2>/dev/null)" = "$(openssl pkey -in "$2" -pubout 2>/dev/null)" ]; }}
lasts() {{ openssl x509 -in "$1" -noout -checkend "$(($2 * day))" >/dev/null 2>&1; }}
authority() {{
    [ -s "$root" ] && [ -s "$root_key" ] && same "$root" "$root_key" && lasts "$root" {LEAF_DAYS + RENEWED_BEFORE}
}}
note() {{ printf '%s %s\\n' "$(sha256sum <"$leaf")" "$names"; }}
reason() {{
    authority || {{ echo "there is no authority that lasts"; return; }}
    [ -s "$leaf" ] && [ -s "$key" ] || {{ echo "there is no certificate"; return; }}
    [ "$(cat "$leaf{NOTE}" 2>/dev/null)" = "$(note)" ] || {{ echo "it has other names"; return; }}
    same "$leaf" "$key" || {{ echo "it has another key"; return; }}
    lasts "$leaf" {RENEWED_BEFORE} || {{ echo "it ends soon"; return; }}
    openssl verify -no-CApath -CAfile "$root" "$leaf" >/dev/null 2>&1 \\
        || {{ echo "another authority made it"; return; }}
    [ "$(stat -c '%U %a' "$root_key")" = "root 600" ] && [ "$(stat -c '%U:%G %a' "$key")" = "root:$group 640" ] \\
        || echo "its key has the wrong owner or mode"
}}
"""

# Everything is made in a folder that only root may enter; what is finished is moved into place.
_ISSUE = f"""
umask 077
mkdir -p -- "$1" && chown root:root -- "$1" && chmod 0700 -- "$1" || exit 1
new=$(mktemp -d "$1/.new.XXXXXXXX") || exit 1
trap 'rm -rf -- "$new"' EXIT
quietly() {{ said=$("$@" 2>&1) || {{ printf '%s\\n' "$said" >&2; exit 1; }}; }}
if authority; then
    chown root:root -- "$root" "$root_key" && chmod 0600 -- "$root" "$root_key" || exit 1
else
    cat >"$new/root.cnf" <<'END'
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = Gateway authority of this box
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
    quietly openssl req -x509 -config "$new/root.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \\
        -days {ROOT_DAYS} -keyout "$new/root.key" -out "$new/root.crt"
    mv -f -- "$new/root.key" "$root_key" && mv -f -- "$new/root.crt" "$root" || exit 1
fi
cat >"$new/leaf.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = Gateway of this box
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names
END
quietly openssl req -new -config "$new/leaf.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \\
    -keyout "$new/leaf.key" -out "$new/leaf.csr"
quietly openssl x509 -req -in "$new/leaf.csr" -CA "$root" -CAkey "$root_key" -sha256 -days {LEAF_DAYS} \\
    -set_serial "0x$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')" -extfile "$new/leaf.cnf" -extensions leaf \\
    -out "$new/leaf.crt"
chown "root:$group" "$new/leaf.key" "$new/leaf.crt" && chmod 0640 "$new/leaf.key" "$new/leaf.crt" || exit 1
mv -f -- "$new/leaf.key" "$key" && mv -f -- "$new/leaf.crt" "$leaf" && note >"$leaf{NOTE}"
"""


def alternative_names(names: Sequence[str]) -> str:
    """`names` and addresses as openssl reads them for a certificate."""

    def one(name: str) -> str:
        try:
            return f"IP:{ip_address(name)}"
        except ValueError:
            return f"DNS:{name}"

    return ",".join(one(name) for name in names)


class WhyAnew(Fact[str]):
    """Why the certificate must be made anew, in a few words; empty when it need not."""

    def command(self, authority: str, certificate: str, key: str, group: str, names: str) -> StringCommand:
        return script(_EXAMINE + "reason\necho examined", authority, certificate, key, group, names)

    def process(self, output: Sequence[str]) -> str:
        *reason, last = output
        if last != "examined" or len(reason) > 1:
            raise FactProcessError(f"not the state of a certificate: {list(output)!r}")
        return "".join(reason)


@operation()
def certificate(authority: str, path: str, key: str, group: str, names: Sequence[str]) -> Commands:
    """`path` and `key` are a certificate for `names` and its key, made by the authority in the folder `authority`.

    It is made anew when the names change, 30 days before its end, and when anything about it is not as it should be;
    the authority only where there is none, or where it would end before the certificate. `group` may read the key.
    Needs openssl on the box.
    """
    arguments = (authority, path, key, group, alternative_names(names))
    found = host.get_fact(
        WhyAnew, authority=authority, certificate=path, key=key, group=group, names=alternative_names(names)
    )
    if found is None:
        yield refuse(f"the certificate {path} could not be examined")
    elif found:
        yield script(_EXAMINE + _ISSUE, *arguments)
