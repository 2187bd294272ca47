"""An instance of PostgreSQL on the target: its data folder, and a database in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script


class Clusters(Fact[tuple[str, ...]]):
    """The releases whose data is in the folder `base`, each in a folder with its name."""

    def command(self, base: str) -> StringCommand:
        text = """
            echo examined
            for file in "$1"/*/PG_VERSION; do
                [ -e "$file" ] || continue
                folder=${file%/*}
                echo "${folder##*/}"
            done
            """
        return script(text, base)

    def process(self, output: Sequence[str]) -> tuple[str, ...]:
        first, *rest = output
        if first != "examined":
            raise FactProcessError(f"not a list of releases: {list(output)!r}")
        return tuple(rest)


@dataclass(frozen=True)
class DatabaseState:
    """`up` says whether the server answered its administrator. `role` is the role of the same name: empty without one,
    `plain` where it may sign in and no more, else `other`; `owner` of the database, empty without one. `closed` says
    whether other roles are kept out. `salt` (ITERATIONS:SALT) and `digest` are those of what is kept of the password.
    """

    up: bool
    role: str = ""
    owner: str = ""
    closed: bool = False
    salt: str = ""
    digest: str = ""


# $1 name of role and database, $2 folder with psql, $3 folder of the socket, $4 port, $5 account of the administrator.
_ASK = """
name=$1 psql=$2/psql socket=$3 port=$4 account=$5
ask() { as_user "$account" "$psql" -X -A -t -q -w -h "$socket" -p "$port" -d postgres -c "$1" 2>/dev/null; }
cd /
if ! ask 'SELECT 1' >/dev/null; then echo up=no; exit 0; fi
echo up=yes
ask "SELECT 'role=' || CASE WHEN rolcanlogin AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication
    OR rolbypassrls) THEN 'plain' ELSE 'other' END FROM pg_roles WHERE rolname = '$name'"
ask "SELECT 'owner=' || rolname FROM pg_database JOIN pg_roles ON pg_roles.oid = datdba WHERE datname = '$name'"
ask "SELECT 'closed=yes' FROM pg_database WHERE datname = '$name'
    AND NOT EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0)"
# Its digest is enough to see whether it is the one that the password makes.
known=$(ask "SELECT rolpassword FROM pg_authid WHERE rolname = '$name'")
case $known in
    'SCRAM-SHA-256$'*)
        salt=${known#*'$'}
        echo "salt=${salt%%'$'*}"
        echo "digest=$(printf %s "$known" | sha256 | cut -d ' ' -f 1)" ;;
esac
exit 0
"""


class Database(Fact[DatabaseState]):
    """The `DatabaseState` of `database` and its role."""

    def command(self, database: str, programs: str, socket: str, port: int, account: str) -> StringCommand:
        return script(_ASK, database, programs, socket, port, account)

    def process(self, output: Sequence[str]) -> DatabaseState:
        values = dict(line.partition("=")[::2] for line in output if line)
        if values.get("up") not in ("yes", "no"):
            raise FactProcessError(f"not the state of a database: {len(output)} lines")
        return DatabaseState(
            up=values["up"] == "yes",
            role=values.get("role", ""),
            owner=values.get("owner", ""),
            closed=values.get("closed") == "yes",
            salt=values.get("salt", ""),
            digest=values.get("digest", ""),
        )
