"""What is in Ollama's store of models on the target, read from its files: it need not run for that."""

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import FactProcessError

from boxwright.facts.api import Fact
from boxwright.shell import script

# Where manifests are kept below the store's folder, in a folder for each namespace; `library` is that of plain names.
MANIFESTS = "manifests/registry.ollama.ai"
# Namespaces of models that have no name yet, and that have none any more, for the moments of a change.
CANDIDATE, FORMER = "boxwright-candidate", "boxwright-former"


def place(name: str) -> str:
    """Where in its namespace the model `name` has its manifest; a name without a tag has the tag `latest`."""
    model, _, tag = name.partition(":")
    return f"{model}/{tag or 'latest'}"


def manifest_path(store: str, name: str) -> str:
    """The manifest of the model `name` in the folder `store`: what makes it exist."""
    return f"{store}/{MANIFESTS}/library/{place(name)}"


@dataclass(frozen=True)
class StoredModel:
    """`manifest` is the digest of the model's manifest; empty when there is none, a part of the model is missing, or a
    change of models was interrupted.

    `note` is what was noted when boxwright made it: the definition, the digest of the manifest, and the file that it
    was made from. `file` says the same of that file now: its size and modification time (ns), or nothing.
    """

    manifest: str
    note: tuple[str, ...]
    file: str


class OllamaModel(Fact[StoredModel]):
    """The `StoredModel` called `model` in the folder `store`, with its note at `record` and what it is made from."""

    def command(self, store: str, model: str, record: str, file: str) -> StringCommand:
        return script(
            """
            manifest=$1 store=$2 record=$3 file=$4 candidates=$5 former=$6
            echo examined
            if [ -f "$manifest" ] && [ ! -e "$candidates" ] && [ ! -e "$former" ]; then
                digest=$(sha256 <"$manifest") || exit 1
                for blob in $(grep -o 'sha256:[0-9a-f]\\{64\\}' "$manifest"); do
                    [ -f "$store/blobs/sha256-${blob#sha256:}" ] || digest=
                done
                [ -z "$digest" ] || echo "manifest=${digest%% *}"
            fi
            if [ -f "$record" ]; then sed 's/^/note=/' "$record" || exit 1; fi
            if [ -n "$file" ] && [ -e "$file" ]; then
                echo "file=$(target_details '%s %.9Y' '%z %Fm' "$file")" || exit 1
            fi
            """,
            manifest_path(store, model),
            store,
            record,
            file,
            f"{store}/{MANIFESTS}/{CANDIDATE}",
            f"{store}/{MANIFESTS}/{FORMER}",
        )

    def process(self, output: Sequence[str]) -> StoredModel:
        lines = [line.partition("=")[::2] for line in output]
        if ("examined", "") not in lines or not {key for key, _ in lines} <= {"examined", "manifest", "note", "file"}:
            raise FactProcessError(f"not the state of a model: {list(output)!r}")
        values = dict(lines)
        note = tuple(value for key, value in lines if key == "note")
        return StoredModel(values.get("manifest", ""), note, values.get("file", ""))
