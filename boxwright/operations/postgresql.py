"""An instance of PostgreSQL, and databases of services in it."""

import base64
import hashlib
import hmac
import re
import secrets

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright.facts.postgresql import Clusters, Database, DatabaseState
from boxwright.operations.api import Commands, operation
from boxwright.shell import refuse, script

# $1 folder, $2 folder with initdb, $3 account. The folder is made beside its place, so that none is ever half made.
_INITDB = """
path=$1 new=$1.new
cd / || exit 1
remove_tree "$new" || exit 1
# The account is the administrator's name, by which the server knows who asks on its socket.
said=$(as_user "$3" "$2/initdb" --pgdata="$new" --username="$3" --encoding=UTF8 --locale=C --data-checksums \\
    --auth-local=peer --auth-host=scram-sha-256 2>&1) || { printf '%s\\n' "$said" | tail -n 5 >&2; exit 1; }
sync_disk "$new" && move_onto "$new" "$path"
"""

# $1 folder with psql, $2 folder of the socket, $3 port, $4 account; the statements come on standard input.
_SQL = """
cd / || exit 1
as_user "$4" "$1/psql" -X -q -w -v ON_ERROR_STOP=1 -h "$2" -p "$3" -d postgres -f - >&2
"""


def verifier(password: str, salt: bytes | None = None, iterations: int = 4096) -> str:
    """What PostgreSQL keeps of `password` (RFC 5802 and 7677), so that the password itself is in no statement, and in
    no log where one fails. ASCII alone: other passwords would have to be prepared first (RFC 4013).
    """
    if not password.isascii():
        raise OperationValueError("a password of PostgreSQL must have plain letters, digits and signs alone")
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${iterations}:{text[0]}${text[1]}:{text[2]}"


def known(password: str, found: DatabaseState) -> bool:
    """Whether what the server keeps is what `password` makes."""
    iterations, _, salt = found.salt.partition(":")
    if not iterations.isdecimal():
        return False
    made = verifier(password, base64.b64decode(salt), int(iterations))
    return hmac.compare_digest(hashlib.sha256(made.encode()).hexdigest(), found.digest)


@operation()
def cluster(base: str, release: str, programs: str, account: str) -> Commands:
    """Below `base`, a folder of `account`, there is the data folder of the release `release`, made with `programs`.

    Refuses where there is data of another release and none of this one: a new, empty one would look like a loss.
    """
    found = host.get_fact(Clusters, base=base)
    if found is None:
        yield refuse(f"{base} could not be examined")
    elif release not in found and found:
        yield refuse(
            f"{base} has data of PostgreSQL {', '.join(found)}, and the box has {release} by now: "
            "docs/databases.md tells how to bring the data over"
        )
    elif release not in found:
        yield script(_INITDB, f"{base}/{release}", programs, account)


def statements(name: str, password: str, found: DatabaseState) -> tuple[str, ...]:
    """What makes the role and the database `name` as they should be, from what was found. None when they are."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
        raise OperationValueError(f"not the name of a database: {name!r}")
    wanted = []
    if not found.role:
        wanted.append(f"CREATE ROLE {name} LOGIN PASSWORD '{verifier(password)}'")
    elif found.role != "plain":
        wanted.append(
            f"ALTER ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
            f"PASSWORD '{verifier(password)}'"
        )
    elif not known(password, found):
        wanted.append(f"ALTER ROLE {name} PASSWORD '{verifier(password)}'")
    if not found.owner:
        wanted.append(f"CREATE DATABASE {name} OWNER {name}")
    elif found.owner != name:
        wanted.append(f"ALTER DATABASE {name} OWNER TO {name}")
    if not found.closed:
        wanted.append(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    return tuple(wanted)


@operation(content=["password"])
def database(database: str, password: str, programs: str, socket: str, port: int, account: str) -> Commands:
    """There is a database `database` that belongs to the role of that name, which signs in with `password` on `port` of
    loopback; no other role but the administrator may enter.

    `programs` is a folder with psql; the administrator is `account`, who comes by the folder `socket`.
    """
    secret = "".join(password)
    found = host.get_fact(Database, database=database, programs=programs, socket=socket, port=port, account=account)
    if found is None:
        yield refuse(f"the database {database} could not be examined")
        return
    wanted = statements(database, secret, found)
    if wanted:
        yield script(_SQL, programs, socket, port, account, stdin=";\n".join(wanted) + ";\n")
