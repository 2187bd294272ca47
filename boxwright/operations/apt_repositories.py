"""Package repositories: known to apt under one pinned key, and only when apt can read their lists with it.

The fingerprint of a key is computed on the box with nothing but coreutils and awk: neither gpg nor gpgv is part of a
minimal Debian 13 (its apt brings sqv, which tells no fingerprints), and gpg would leave a key store in root's home.
A version 4 fingerprint is the SHA-1 of the public key packet (RFC 9580, section 5.5.4.2).
"""

from pyinfra import host
from pyinfra.api.exceptions import OperationValueError

from boxwright.artifacts import AptRepository, MirrorSettings
from boxwright.facts.apt_repositories import Repository, RepositoryState
from boxwright.operations.api import Commands, operation
from boxwright.operations.apt import APT
from boxwright.operations.files import RECORDS, show_difference, text_on_box
from boxwright.shell import refuse, script

# Reads an OpenPGP key file, binary or armored, whatever number of keys is in it.
_KEY = r"""
# $1 as binary, on standard output.
binary() {
    if ! grep -q -a -e '-----BEGIN PGP PUBLIC KEY BLOCK-----' -- "$1"; then
        cat -- "$1"
        return
    fi
    # One line of base64 for each block, without its headers and checksum.
    tr -d '\r' <"$1" | awk '
        /^-----BEGIN PGP PUBLIC KEY BLOCK-----/ { inside = heading = 1; text = ""; next }
        /^-----END/ { if (inside) print text; inside = 0; next }
        !inside { next }
        heading && /^[ \t]*$/ { heading = 0; next }
        heading && /: / { next }
        /^=/ { next }
        { heading = 0; text = text $0 }' | while IFS= read -r block; do printf %s "$block" | base64 -d || exit 1; done
}
# For each primary key in the binary file $1 where it begins, where its packet's body begins, how long that is, and its
# version; then `end` and the size of the file. A file that is no key gives `damaged`.
primaries() {
    od -An -v -tu1 -w1 -- "$1" | awk '
        function number(count,   value) { while (count-- > 0) value = value * 256 + byte[at++]; return value + 0 }
        { byte[NR - 1] = $1 + 0 }
        END {
            at = 0
            while (at < NR) {
                start = at
                head = number(1)
                if (head >= 192) {
                    tag = head - 192
                    size = number(1)
                    if (size >= 192 && size < 224) size = (size - 192) * 256 + number(1) + 192
                    else if (size == 255) size = number(4)
                    else if (size >= 224) { print "damaged"; exit }
                } else if (head >= 128 && head % 4 < 3) {
                    tag = int((head - 128) / 4)
                    size = number(head % 4 == 0 ? 1 : head % 4 * 2)
                } else { print "damaged"; exit }
                if (at + size > NR || (start == 0 && tag != 6)) { print "damaged"; exit }
                if (tag == 6) print start, at, size, byte[at]
                at += size
            }
            if (NR == 0) print "damaged"
            else print "end", NR
        }'
}
part() { tail -c +"$(($2 + 1))" -- "$1" | head -c "$3"; }  # of the file $1, from the offset $2, $3 bytes
# Puts the key with the fingerprint $2, and no other, from the file $1 into $3. Fails with the fingerprints that there
# are in `found`; empty when the file holds no key.
pick() {
    found= from=
    binary "$1" >"$1.binary" || return 1
    primaries "$1.binary" >"$1.primaries"
    while read -r start body size version; do
        case $start in damaged) found=; return 1 ;; end) start=$body ;; esac
        if [ -n "$from" ]; then
            part "$1.binary" "$from" "$((start - from))" >"$3"
            return
        fi
        [ -n "$version" ] || continue
        if [ "$version" != 4 ]; then
            found="$found a key of version $version"
            continue
        fi
        print=$({
            printf "\\231\\$(printf %03o "$((size / 256))")\\$(printf %03o "$((size % 256))")"
            part "$1.binary" "$body" "$size"
        } | sha1sum | cut -c1-40 | tr a-f A-F)
        found="$found $print"
        [ "$print" != "$2" ] || from=$start
    done <"$1.primaries"
    return 1
}
"""

# $1 name, $2 sources, $3 keyring, $4 record, $5 fingerprint, $6 where the key is fetched, $7 where it is published,
# $8 end of the name of a file put aside, $9 address, $10 suite, then the files to put aside. The text of the sources
# comes on standard input.
_ADD = r"""
text=$(cat; echo x)
text=${text%x}
name=$1 sources=$2 keyring=$3 record=$4 fingerprint=$5 key_url=$6 published=$7 aside=$8 url=$9 suite=${10}
shift 10
unchanged=
[ ! -e "$sources" ] || unchanged='; what was there before stays'
fail() { printf 'the package repository %s cannot be used: %s%s\n' "$name" "$1" "$unchanged" >&2; exit 1; }
now=$(date -u '+%Y-%m-%d %H:%M UTC')
umask 022
find /tmp -maxdepth 1 -name 'boxwright-apt.*' -user root -mmin +60 -exec rm -rf {} + 2>/dev/null
scratch=$(mktemp -d /tmp/boxwright-apt.XXXXXXXX) && chmod 0755 "$scratch" && mkdir -p "$scratch/lists/partial" || exit 1
trap 'rm -rf -- "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

command -v curl >/dev/null || fail 'curl is not installed on this box'
mirrored=
[ "$key_url" = "$published" ] || mirrored=" (the mirror of $published)"
if ! said=$(curl --silent --show-error --fail --location --proto =http,https --proto-redir =http,https \
    --connect-timeout 20 --max-time 120 --retry 2 --max-filesize 1048576 --output "$scratch/key" -- "$key_url" 2>&1)
then
    case $said in
        *certificate*) said="$said (the clock of this box says $now: a wrong clock does this too)" ;;
    esac
    fail "its key cannot be fetched from $key_url$mirrored: $said"
fi
if ! pick "$scratch/key" "$fingerprint" "$scratch/keyring.gpg"; then
    [ -n "$found" ] || fail "what $key_url$mirrored returns is not an OpenPGP key"
    fail "$key_url$mirrored holds another key than the pinned one.
  expected $fingerprint
  found   $found
  Whoever can replace the key can replace the packages: find out from the publisher why it changed. It was not used"
fi

# Tried with lists of its own first, so that apt never sees a repository that it cannot use.
printf %s "$text" | sed "s|^Signed-By: .*|Signed-By: $scratch/keyring.gpg|" >"$scratch/$name.sources"
refresh() {
    file=$1
    shift
    wait_for_locks || exit 1
    apt-get --quiet --quiet -o "Dir::Etc::SourceList=$file" -o Dir::Etc::SourceParts=- -o APT::Get::List-Cleanup=0 \
        -o APT::Update::Error-Mode=any -o Acquire::Retries=2 -o Acquire::http::Timeout=30 \
        -o Acquire::https::Timeout=30 "$@" update 2>&1 9>&-
}
# $1 what apt says of a repository that it cannot use. Words of apt 2.4 to 3.0, of gpgv and of sqv.
explain() {
    case $1 in
        *'Could not get lock'* | *'Unable to lock'*) echo 'another program is refreshing lists of packages' ;;
        *'Could not resolve'* | *'Temporary failure resolving'* | *'Could not connect'* | *'onnection timed out'* | \
        *'Connection refused'* | *'Connection failed'* | *'Unable to connect'* | *'No route to host'* | \
        *'Network is unreachable'* | *'onnection reset'*)
            echo "its server cannot be reached at $url: is it running, and can this box reach it?" ;;
        *'Certificate verification failed'* | *'certificate'*'not'*'valid'* | *'certificate'*'expired'*)
            echo "the certificate of $url is not accepted (this box's clock says $now: a wrong clock does this too)" ;;
        *'is not valid yet'* | *'in the future'* | *'Not live until'*)
            echo "its lists are dated later than this box's clock, which says $now: set the clock of the box (\
timedatectl), or wait when it is the publisher's that is ahead" ;;
        *'is expired'*)
            echo "its lists were valid only until a time that has passed (the clock of this box says $now): if the \
clock is right, the mirror or the publisher has not brought them up to date" ;;
        *EXPKEYSIG* | *KEYEXPIRED* | *EXPSIG* | *'xpired on '* | *'key is expired'* | *'not live:'*'xpired'*)
            echo "its signature, or the key that made it, has expired (the clock of this box says $now): the \
publisher, or the mirror, must renew it" ;;
        *NO_PUBKEY* | *'Missing key'*)
            echo "its lists are not signed with the pinned key $fingerprint, but with another one" ;;
        *BADSIG* | *'Bad signature'* | *'Message has been manipulated'* | *'bad signature'*)
            echo 'its signature does not fit its lists: they were altered, or are just being replaced' ;;
        *'does not have a Release file'*)
            echo "$url has no suite '$suite': does the publisher, or the mirror, support this release?" ;;
        *'is not signed'*) echo 'its lists are not signed' ;;
        *"doesn't have the component"*) echo "its suite '$suite' lacks a component that is asked for" ;;
        *'Hash Sum mismatch'* | *'File has unexpected size'* | *'Mirror sync in progress'*)
            echo 'its lists do not fit together: they are just being replaced, try again in a few minutes' ;;
        *'404 '* | *'Failed to fetch'*) echo "$url does not hand out what its lists name" ;;
        *) echo 'apt does not accept it' ;;
    esac
}
said=$(refresh "$scratch/$name.sources" -o "Dir::State::Lists=$scratch/lists" -o Dir::Cache::pkgcache= \
    -o Dir::Cache::srcpkgcache=)
status=$?
case $said in *"doesn't have the component"*) status=1 ;; esac
if [ "$status" -ne 0 ] || ! ls "$scratch"/lists/ | grep -q Release; then
    printf '%s\n' "$said" | grep -v '^W: .*sandbox' >&2
    fail "$(explain "$said")"
fi
# apt says nothing of this.
architectures=$(cat "$scratch"/lists/*Release | sed -n 's/^Architectures://p')
architecture=$(dpkg --print-architecture)
case " $architectures " in
    "  " | *" $architecture "* | *' all '*) ;;
    *) fail "its suite '$suite' has no packages for this box's architecture, $architecture, but for$architectures" ;;
esac

# From here on what is done counts: a run that is killed in it is completed by the next one.
mkdir -p -- "$(dirname -- "$keyring")" "$(dirname -- "$record")" || exit 1
rm -f -- "$record"
for rival; do
    echo "$rival names the same repository: it is put aside as $rival$aside" >&2
    mv -f -- "$rival" "$rival$aside" || exit 1
done
place() { chmod 0644 "$1" && sync -- "$1" && mv -fT -- "$1" "$2"; }
cp -- "$scratch/keyring.gpg" "$keyring.new" && place "$keyring.new" "$keyring" || exit 1
printf %s "$text" >"$sources.new" && place "$sources.new" "$sources" || exit 1
if ! said=$(refresh "$sources"); then
    printf '%s\n' "$said" >&2
    unchanged=
    fail "$(explain "$said")"
fi
noted() { sum=$(sha256sum <"$1"); echo "${sum%% *}"; }
echo "$fingerprint $(noted "$sources") $(noted "$keyring")" >"$record.new" && mv -fT -- "$record.new" "$record"
"""

# $1 sources, $2 keyring, $3 record, $4 end of the name of a file put aside, then those files.
_REMOVE = r"""
sources=$1 keyring=$2 record=$3 aside=$4
shift 4
wait_for_locks || exit 1
lists=
if [ -e "$sources" ]; then
    lists=$(apt-get --quiet --quiet -o "Dir::Etc::SourceList=$sources" -o Dir::Etc::SourceParts=- \
        indextargets --format '$(FILENAME)' 2>/dev/null)
    releases=$(apt-get --quiet --quiet -o "Dir::Etc::SourceList=$sources" -o Dir::Etc::SourceParts=- \
        indextargets --format '$(METAKEY) $(FILENAME)' 2>/dev/null)
fi
rm -f -- "$sources" "$sources.new" "$keyring" "$keyring.new" || exit 1
for file; do mv -f -- "$file" "${file%"$aside"}" || exit 1; done
# Its lists too: else apt would go on offering its packages until the next refresh.
for list in $lists; do
    for one in "$list" "$list".*; do case $one in /var/lib/apt/lists/*) rm -f -- "$one" ;; esac; done
done
printf '%s\n' "$releases" | while read -r key list; do
    # What comes before the name of an index is the name of its suite's Release file.
    suffix=$(printf %s "$key" | tr / _)
    case $list in /var/lib/apt/lists/*"$suffix"*) rm -f -- "${list%%"$suffix"*}"*Release ;; esac
done
rm -f -- "$record" "$record.new"
rmdir -- "$(dirname -- "$record")" "$(dirname -- "$(dirname -- "$record")")" 2>/dev/null
exit 0
"""


def sources_path(name: str) -> str:
    """Where apt reads of the repository `name`."""
    return f"/etc/apt/sources.list.d/boxwright-{name}.sources"


def keyring_path(name: str) -> str:
    """Where the key of the repository `name` is kept."""
    return f"/etc/apt/keyrings/boxwright-{name}.gpg"


def _record(name: str) -> str:
    return f"{RECORDS}/repositories/{name}"


def _aside(name: str) -> str:
    # apt says nothing of files that end so.
    return f".boxwright-{name}.disabled"


def sources_text(repository: AptRepository, mirror: MirrorSettings | None = None, architecture: str = "") -> str:
    """The deb822 file of `repository` for /etc/apt/sources.list.d (sources.list(5)), fetched through `mirror`.

    `architecture` is the box's own: a box that also has packages for another one (i386) would ask for both.
    """
    lines = {
        "Types": "deb",
        "URIs": mirror.file_url(repository.url) if mirror else repository.url,
        "Suites": repository.suite,
        "Components": " ".join(repository.components),
        "Architectures": " ".join(repository.architectures) or architecture,
        "Signed-By": keyring_path(repository.name),
    }
    banner = "# Written by boxwright: changes made here are overwritten by the next run.\n"
    return banner + "".join(f"{key}: {value}\n" for key, value in lines.items() if value)


def _as_wanted(found: RepositoryState, fingerprint: str, text: str) -> bool:
    """Whether the repository is as it was when apt last read its lists with the pinned key."""
    noted = f"{fingerprint} {found.sources.sha256} {found.keyring.sha256}"
    files = found.sources.holds(text) and found.sources.is_roots(0o644) and found.keyring.is_roots(0o644)
    return files and found.record == noted and not found.rivals


@operation()
def repository(repository: AptRepository, mirror: MirrorSettings | None = None) -> Commands:
    """apt knows `repository`, fetched from its publisher or from `mirror`, with the pinned key for it and no other.

    The pinned key is the publisher's, or the mirror's own (`MirrorSettings.key_fingerprint`), found at the same path.

    Only a repository whose lists apt can read with that key is put in place; else the one that was there stays, and
    the message says what is wrong. Only its own lists are refreshed, and only when it changed. Other files that name
    the same repository, for which apt would refuse to work, are put aside until `repository_absent`. Needs curl.
    """
    if any("{" in text for text in (repository.url, repository.suite, repository.key_url)):
        raise OperationValueError(f"the repository {repository.name} depends on the box: use AptRepository.on first")
    name = repository.name
    url = mirror.file_url(repository.url) if mirror else repository.url
    found = host.get_fact(
        Repository,
        sources=sources_path(name),
        keyring=keyring_path(name),
        record=_record(name),
        aside=_aside(name),
        url=url,
        suite=repository.suite,
    )
    if found is None:
        yield refuse(f"the package repository {name} could not be examined")
        return
    text = sources_text(repository, mirror, found.architecture)
    fingerprint = (mirror.key_fingerprint if mirror else "") or repository.key_fingerprint
    if found.mixed:
        where = " and ".join(found.mixed)
        yield refuse(f"{where} names {url} too, beside other repositories: take it out there, or apt refuses to work")
    elif not _as_wanted(found, fingerprint, text):
        show_difference(sources_path(name), text_on_box(sources_path(name), found.sources), text)
        yield script(
            APT + _KEY + _ADD,
            name,
            sources_path(name),
            keyring_path(name),
            _record(name),
            fingerprint,
            mirror.file_url(repository.key_url) if mirror else repository.key_url,
            repository.key_url,
            _aside(name),
            url,
            repository.suite,
            *found.rivals,
            stdin=text,
        )


@operation()
def repository_absent(repository: str) -> Commands:
    """apt does not know the repository called `repository` by us: files, key and lists are gone.

    Files that were put aside for it are back. Packages that came from it stay as they are.
    """
    paths = (sources_path(repository), keyring_path(repository), _record(repository), _aside(repository))
    found = host.get_fact(
        Repository, sources=paths[0], keyring=paths[1], record=paths[2], aside=paths[3], url="none", suite=""
    )
    if found is None:
        yield refuse(f"the package repository {repository} could not be examined")
    elif found.record or found.aside or {found.sources.kind, found.keyring.kind} != {"absent"}:
        yield script(APT + _REMOVE, *paths, *found.aside)
