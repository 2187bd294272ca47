#!/bin/sh
# Written by boxwright. Called by the unit after its process was started: ADDRESS LIST
# Returns when Ollama answers and the models that LIST names (lines of "KIND NAME") have answered a question, so that
# they are in memory. A model that is not made yet is left out; one that does not answer does not stop the others.
until curl --silent --fail --noproxy '*' --output /dev/null --max-time 5 "$1/api/version"; do
    kill -0 "$MAINPID" 2>/dev/null || exit 1
    sleep 0.2
done
while read -r kind name; do
    case $kind in
        embedding)
            path=/v1/embeddings
            body="{\"model\":\"$name\",\"input\":\"ready\"}"
            ;;
        *)
            path=/v1/chat/completions
            body="{\"model\":\"$name\",\"messages\":[{\"role\":\"user\",\"content\":\"Say yes.\"}],\"max_tokens\":1}"
            ;;
    esac
    answer=$(curl --silent --noproxy '*' --write-out '\n%{http_code}' --header 'Content-Type: application/json' \
        --data "$body" "$1$path")
    case $answer in
        *200 | *404) ;;
        *) echo "the model $name does not answer: $answer" >&2 ;;
    esac
    kill -0 "$MAINPID" 2>/dev/null || exit 1
done <"$2"
