"""Models of Ollama: made, and removed, by a process of its own beside the one that serves.

Two reasons. Ollama's reader of GGUF files ends its whole process when it meets one that is damaged (seen with 0.24:
`panic: makeslice: len out of range`), and with it every answer that is under way. And the process that serves then
needs neither to write its store nor to reach a registry. Ollama reads the store anew at each request, so the serving
process knows a new model at once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand

from boxwright import launchd
from boxwright.facts.accounts import Accounts
from boxwright.facts.files import Entries
from boxwright.facts.ollama import CANDIDATE, FORMER, MANIFESTS, OllamaModel, manifest_path, place
from boxwright.operations.api import Commands, operation
from boxwright.services import Service
from boxwright.settings import System
from boxwright.shell import ARRIVING, refuse, script
from boxwright.systemd import SANDBOX

# Runs in the process of its own: PROGRAM METHOD PATH; the request's body comes on standard input. What it leaves goes
# with the store that was made for it, and what it started with the process.
_REQUEST = """
log=$OLLAMA_MODELS/log
exec 3<&0
"$1" serve >"$log" 2>&1 </dev/null 3<&- &
server=$!
address=
until [ -n "$address" ]; do
    kill -0 "$server" 2>/dev/null || { tail -n 3 "$log" >&2; exit 1; }
    sleep 0.1
    address=$(sed -n 's/.*msg="Listening on \\([0-9.:]*\\) .*/\\1/p' "$log")
done
code=$(curl --silent --noproxy '*' --output "$log.answer" --write-out '%{http_code}' --request "$2" \\
    --data-binary @- "http://$address$3" <&3)
# A server that ended says why, but not before the connection is gone.
tries=100
while [ "$code" = 000 ] && [ "$tries" -gt 0 ] && kill -0 "$server" 2>/dev/null; do
    tries=$((tries - 1))
    sleep 0.1
done
if [ "$code" = 200 ] && ! grep -q '"error"' "$log.answer"; then exit 0; fi
if said=$(grep -m 1 '^panic: ' "$log"); then
    echo "its reader of model files gave up: $said" >&2
else
    sed -n 's/.*"error":"\\(.*\\)".*/\\1/p' "$log.answer" 2>/dev/null | head -n 1 | grep . >&2 || tail -n 3 "$log" >&2
fi
exit 1
"""

# clear_store STORE: nothing is left in it that no model uses. Ollama's own way spares what is less than an hour old.
_CLEAR = """
clear_store() {
    used=$(grep -rhos 'sha256:[0-9a-f]\\{64\\}' "$1/manifests" | sort -u)
    for blob in "$1"/blobs/*; do
        left=${blob##*/sha256-}
        case $used in
            *"sha256:$left"*) ;;
            *) [ ! -f "$blob" ] || rm -f -- "$blob" ;;
        esac
    done
}
"""

# $1 name, $2 where its manifest is in its namespace, $3 folder of the store, $4 record, $5 user, $6 unit, $7 address,
# $8 definition, $9 file, ${10} its digest or nothing, ${11} name to pull or nothing, ${12} path of the question, ${13}
# its body, ${14} the script above, ${15} program of Ollama, ${16} the user in whose session the serving process runs,
# or nothing, then the words before a command that is run as the process of its own. Standard input is the request;
# @DIGEST@ in it stands for the digest of the file.
#
# Models are made in a store of their own beside the one that is served, with the same folder of blobs. Where a model of
# that name serves already, the new one goes there under a name that nobody knows, is asked, and only then gets its own.
_MAKE = """
name=$1 place=$2 store=$3 record=$4 user=$5 unit=$6 url=$7 definition=$8 file=$9
shift 9
wanted=$1 pulled=$2 question=$3 asked=$4 requests=$5 program=$6 session=$7
shift 7
fail() { printf '%s\\n' "$1" >&2; exit 1; }
new=$store-new names=$store/MANIFESTS
manifest=$names/library/$place candidate=$names/CANDIDATE/$place former=$names/FORMER/$place
if [ -d /System/Library ]; then
    log=LOGS/${unit%.service}/${unit%.service}.log
    domain=system
    [ -z "$session" ] || domain=gui/$(id -u "$session") || exit 1
    serving() { launchctl print "$domain/boxwright.${unit%.service}" 2>/dev/null | grep -q '^	state = running$'; }
    listen() { since=$(wc -c <"$log" 2>/dev/null); }
    heard() {
        # It may have been emptied meanwhile.
        [ "$(wc -c <"$log")" -ge "$since" ] || since=0
        tail -c "+$((since + 1))" -- "$log"
    }
    # Costs no space where the file system can share it.
    copied() { cp -c -- "$1" "$2" 2>/dev/null || cp -- "$1" "$2"; }
else
    serving() { systemctl --quiet is-active "$unit"; }
    listen() { since=$(date +%s); }
    heard() { journalctl --quiet --no-pager --output=cat --since="@$since" --unit="$unit"; }
    copied() { cp --reflink=auto -- "$1" "$2"; }
fi
# Ollama writes there too, by itself.
folder() { install -d -o "$user" -g "$user" -m 0755 -- "$@"; }
clean() { rm -rf -- "$new" "$names/CANDIDATE" "$names/FORMER"; }
# The blob with the weights.
weights() { grep -o '"mediaType":"application/vnd.ollama.image.model","digest":"[^"]*"' "$1"; }
# With a network, the server beside may reach a registry; without, this machine alone, where that can be had.
request() {
    network=$1 path=$2
    shift 2
    if [ "$1" != systemd-run ]; then
        # An account without a home: Ollama makes a key there.
        set -- "$@" /usr/bin/env HOME="$new"
    elif [ "$network" = no ]; then
        set -- "$@" --property=IPAddressDeny=any --property=IPAddressAllow=localhost
    fi
    "$@" /usr/bin/env OLLAMA_HOST=127.0.0.1:0 OLLAMA_MODELS="$new" \\
        /bin/sh -c "$requests" request "$program" POST "$path"
}
# post URL BODY OPTION...
post() {
    to=$1 said=$2
    shift 2
    curl --silent --show-error --noproxy '*' --header 'Content-Type: application/json' --data "$said" "$@" "$to" 2>&1
}
answers() {
    listen
    answer=$(post "$url$question" "$1" --write-out '\\n%{http_code}')
    [ "${answer##*
}" = 200 ]
}
# What Ollama tells its log alone.
why() {
    said=$(heard | grep 'error loading model' | tail -n 1)
    [ -n "$said" ] || return 0
    printf '\n%s' "$said"
    case $said in *'unknown model architecture'*) printf ': a newer Ollama may know it, see ollama_version' ;; esac
}
unload() { post "$url/api/generate" "{\\"model\\":\\"$1\\",\\"keep_alive\\":0}" >/dev/null; }
free() { echo $(($(df -Pk -- "$store" | awk 'NR == 2 { print $4 }') * 1024)); }
# In KiB; files of which Ollama has only parts have holes.
held() { du -sk -- "$store/blobs" | cut -f 1; }
arrived() { echo $((($(held) - earlier) * 1024)); }
umask 022
mkdir -p -- "$(dirname -- "$record")" || exit 1
body=$(cat)
exec 9<"$store" || exit 1
wait_lock 14400 || fail "another run has been busy with the models of Ollama for hours"
clean
trap clean EXIT
folder "$new" "$new/manifests" && ln -s "$store/blobs" "$new/blobs" || exit 1
if [ -n "$file" ]; then
    [ -f "$file" ] || fail "cannot make the model $name: there is no file $file"
    [ "$(head -c 4 -- "$file")" = GGUF ] || fail "cannot make the model $name: $file is not a GGUF file"
    if [ -z "$wanted" ] || [ ! -f "$store/blobs/sha256-$wanted" ]; then
        size=$(target_details %s %z "$file") free=$(free)
        [ "$free" -ge "$size" ] || fail "cannot make the model $name: it needs $size bytes ($((size / 1048576)) MiB) \\
in $store, which has $free bytes ($((free / 1048576)) MiB) free"
        copy=$store/blobs/new-$$
        copied "$file" "$copy" || { rm -f -- "$copy"; exit 1; }
        found=$(sha256 <"$copy") && found=${found%% *} || { rm -f -- "$copy"; exit 1; }
        if [ -n "$wanted" ] && [ "$found" != "$wanted" ]; then
            rm -f -- "$copy"
            fail "cannot make the model $name: $file has the wrong checksum
  expected sha256 $wanted
  found    sha256 $found"
        fi
        wanted=$found
        chown -- "$user:$user" "$copy" && chmod -- 0644 "$copy" || exit 1
        move_onto "$copy" "$store/blobs/sha256-$wanted" || exit 1
    fi
fi
if [ -n "$pulled" ]; then
    earlier=$(held)
    arriving "" arrived &
    reporter=$!
    trap 'kill "$reporter" 2>/dev/null; clean' EXIT
    # What arrived is kept for the next time, unless the disk is full of it.
    printf '{"model":"%s","stream":false}' "$pulled" | request yes /api/pull "$@" || {
        [ "$(free)" -gt 536870912 ] || clear_store "$store"
        fail "cannot pull $pulled for the model $name"
    }
    kill "$reporter" 2>/dev/null
fi
printf '%s' "$body" | sed "s/@DIGEST@/$wanted/" | request no /api/create "$@" \\
    || { clear_store "$store"; fail "cannot make the model $name${file:+ of $file}"; }
made=$new/MANIFESTS/library/$place
serves=
if serving; then serves=yes; fi
if cmp -s -- "$made" "$manifest"; then
    :
elif [ -n "$serves" ] && [ -f "$manifest" ]; then
    folder "$names/CANDIDATE" "${candidate%/*}" && move_onto "$made" "$candidate" || exit 1
    answers "$(printf '%s' "$asked" | sed 's|"model": "|&CANDIDATE/|')" || {
        rm -f -- "$candidate"
        clear_store "$store"
        fail "the model $name was made, and does not answer: $answer$(why)
what had that name before serves on"
    }
    folder "$names/FORMER" "${former%/*}" && cp -p -- "$manifest" "$former" || exit 1
    move_onto "$candidate" "$manifest" || exit 1
    # What is in memory is there under the name that it was loaded by, and may stay there for ever: both go when nobody
    # is being answered by them, and the model is loaded by its own name.
    [ "$(weights "$manifest")" = "$(weights "$former")" ] || unload "FORMER/$name"
    unload "$name"
    for try in $(seq 300); do
        curl --silent --noproxy '*' "$url/api/ps" | grep -q '"CANDIDATE/' || break
        sleep 0.1
    done
    answers "$asked" || fail "the model $name answered under another name, and does not under its own: $answer"
else
    folder "$names" "$names/library" "${manifest%/*}" && move_onto "$made" "$manifest" || exit 1
    [ -z "$serves" ] || answers "$asked" || {
        rm -f -- "$manifest"
        clear_store "$store"
        fail "the model $name was made, and does not answer: $answer$(why)"
    }
fi
{
    echo "$definition"
    sha256 <"$manifest" | cut -d ' ' -f 1
    [ -z "$file" ] || target_details '%s %.9Y' '%z %Fm' "$file"
} >"$record.new" && move_onto "$record.new" "$record" || exit 1
# What only the earlier model of that name used.
clean
clear_store "$store"
"""

# $1 folder of the store, $2 folder of the records. Standard input has a line for each model: the name of its note, and
# its manifest.
_REMOVE = """
store=$1 records=$2
exec 9<"$store" || exit 1
wait_lock 14400 || { echo "another run has been busy with the models of Ollama for hours" >&2; exit 1; }
while IFS=' ' read -r name manifest; do
    rm -f -- "$manifest" && rm -f -- "$records/$name" || exit 1
done
clear_store "$store"
"""

MAKE = ARRIVING + _CLEAR + _MAKE
for _word, _value in (("CANDIDATE", CANDIDATE), ("FORMER", FORMER), ("MANIFESTS", MANIFESTS), ("LOGS", launchd.LOGS)):
    MAKE = MAKE.replace(_word, _value)

# What a server that is started beside the serving one may not be denied.
_NEEDED = {"IPAddressDeny", "IPAddressAllow", "ProcSubset"}


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where Ollama's models are, and by what they are put there.

    `program` is the path of Ollama, `folder` its store, `records` the folder of the notes about models that boxwright
    made. The process beside runs as `user`, to whom the store belongs, with the variables of `environment_file`. On
    Linux it may write `state_directory` (a name below /var/lib) alone; on a Mac, which has no such sandbox, `user` is
    not the one as whom the serving process runs. `unit` is the serving service, which answers at `url`; it is an agent
    in the session of the user `session`, or a daemon.
    """

    system: System
    program: str
    folder: str
    records: str
    state_directory: str
    user: str
    environment_file: str
    unit: str
    url: str
    session: str = ""

    def beside(self) -> tuple[str, ...]:
        """The words before a command by which it runs in the process beside."""
        if self.system == "darwin":
            service = Service(
                name=f"{self.unit}-store",
                description="Makes models",
                command=(self.program, "serve"),
                user=self.user,
                environment_file=self.environment_file,
            )
            return (*launchd.as_service(service), "--")
        found = [
            *("systemd-run", "--quiet", "--collect", "--wait", "--pipe", "--service-type=exec"),
            f"--description=Ollama, making models for {self.unit}",
            f"--property=User={self.user}",
            f"--property=Group={self.user}",
            f"--property=StateDirectory={self.state_directory}",
            "--property=StateDirectoryMode=0700",
            f"--property=EnvironmentFile={self.environment_file}",
        ]
        for name, value in SANDBOX.items():
            if name not in _NEEDED and value is not None:
                values = value if isinstance(value, tuple) else (value,)
                found += [f"--property={name}={one}" for one in values]
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A model as it shall be: made of the GGUF file `file` with the digest `sha256` (empty: not known), or of `pulled`,
    a name in a registry, with Ollama's `parameters`.
    """

    name: str
    embedding: bool = False
    file: str = ""
    sha256: str = ""
    pulled: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def request(self) -> str:
        """The body of Ollama's /api/create, which is what `ollama create` sends for a Modelfile."""
        source = {"from": self.pulled} if self.pulled else {"files": {"model.gguf": "sha256:@DIGEST@"}}
        values = {"model": self.name, **source, "parameters": dict(self.parameters), "stream": False}
        return json.dumps(values, sort_keys=True)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that change when the definition does."""
        text = f"{self.request} {self.sha256 or self.file}"
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def question(self) -> tuple[str, str]:
        """A path of the API, and what is asked there to see that the model answers."""
        if self.embedding:
            return "/v1/embeddings", json.dumps({"model": self.name, "input": "ready"})
        messages = [{"role": "user", "content": "Say yes."}]
        return "/v1/chat/completions", json.dumps({"model": self.name, "messages": messages, "max_tokens": 1})


@operation()
def account_free(user: str, home: str, unit: str) -> Commands:
    """No process runs as `user` when its home folder is not `home` yet: Ollama's installer, where it came first, made
    this account with another one, and the service `unit`, and an account that is in use cannot be changed.
    """
    found = host.get_fact(Accounts, names=(user,))
    if found is None:
        yield refuse(f"the account {user} could not be examined")
    elif user in found and found[user].home != home:
        yield script('systemctl stop -- "$1.service" 2>/dev/null || true', unit)


@operation()
def model(store: Store, definition: Definition) -> Commands:
    """The store has the model as it is defined, and the serving process answers a question with it, where it runs.

    Nothing is restarted. One that replaces another gets its name when it has answered, and until then the other serves
    on; both are in memory for this moment, and the new one is loaded once more by its own name. One that
    boxwright made, and that somebody changed, is made again.
    """
    record = f"{store.records}/{definition.name}"
    found = host.get_fact(OllamaModel, store=store.folder, model=definition.name, record=record, file=definition.file)
    if found is None:
        yield refuse(f"the model {definition.name} of Ollama could not be examined")
        return
    # A file with a checksum cannot have changed without its name here.
    noted = [definition.digest, found.manifest]
    if not definition.sha256 and definition.file:
        noted.append(found.file)
    if found.manifest and list(found.note[: len(noted)]) == noted:
        return
    yield script(MAKE, *arguments(store, definition), stdin=definition.request)


def arguments(store: Store, definition: Definition) -> tuple[str, ...]:
    """The arguments of the shell script `MAKE`, which makes the model as it is defined.

    Its standard input is the definition's `request`. It ends with 0 when the model has its name, also when it had it
    already; otherwise it says why not on standard error, and what had the name before serves on.
    """
    return (
        definition.name,
        place(definition.name),
        store.folder,
        f"{store.records}/{definition.name}",
        store.user,
        f"{store.unit}.service",
        store.url,
        definition.digest,
        definition.file,
        definition.sha256,
        definition.pulled,
        *definition.question,
        _REQUEST,
        store.program,
        store.session,
        *store.beside(),
    )


@operation()
def models_absent(store: Store, keep: Sequence[str]) -> Commands:
    """Of the models that boxwright made only those with the names `keep` are left; those of others stay."""
    found = host.get_fact(Entries, path=store.records)
    if found is None:
        yield refuse(f"{store.records} could not be examined")
    elif others := [name for name in found if name not in keep]:
        yield _removal(store, others)


def _removal(store: Store, names: Sequence[str]) -> StringCommand:
    lines = "".join(f"{name} {manifest_path(store.folder, name)}\n" for name in names)
    return script(_CLEAR + _REMOVE, store.folder, store.records, stdin=lines)
