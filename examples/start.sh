# shellcheck shell=bash
# What the examples share; they read it with `source`. Not to be run by itself.
#
# A service of the example's own: operator's file and data stand in a temporary folder ($data) that goes at the end. With
# RINGBACK_URL and RINGBACK_API_KEY it is a service that runs already, whose operator's file must have what the example needs.
set -euo pipefail
examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$(dirname "$0")")" "$*" >&2; exit 1; }
for needed in curl python3; do
    command -v "$needed" >/dev/null || fail "$needed is needed"
done

data=$(mktemp -d "${TMPDIR:-/tmp}/ringback-example.XXXXXX")
chmod 711 "$data" # PostgreSQL does not run as root: for root it runs as another user, who must pass through
children=()
stop() {
    local status=$?
    trap - EXIT
    local last
    for ((last = ${#children[@]} - 1; last >= 0; last--)); do # who needs another was started after it
        if kill -TERM "${children[last]}" 2>/dev/null; then wait "${children[last]}" || :; fi
    done
    rm -rf "$data"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Waits up to 60 s until the command says yes.
wait_until() {
    local what=$1
    shift
    for _ in $(seq 300); do
        if "$@"; then return; fi
        sleep 0.2
    done
    fail "$what: not within 60 s"
}

find_ringback() {
    for ringback in "${RINGBACK:-}" "$examples/../target/release/ringback" "$examples/../target/debug/ringback" \
        "$(command -v ringback || :)"; do
        if [ -x "$ringback" ]; then return; fi
    done
    fail "build it first (cargo build --release), or name it: RINGBACK=/path/to/ringback $0"
}

listens() {
    url=$(sed -n 's/^Ringback .* listens on \(http:.*\)$/\1/p' "$data/out")
    [ -n "$url" ] || kill -0 "$service" 2>/dev/null || { cat "$data/log" >&2; fail "the service did not start"; }
    [ -n "$url" ]
}

# Starts `ringback serve` with the operator's file $data/ringback.toml, if there is one. Afterwards `api` reaches it.
start_ringback() {
    local file=$data/ringback.toml
    if [ -n "${RINGBACK_URL:-}" ]; then
        url=${RINGBACK_URL%/}
        key=${RINGBACK_API_KEY:?is needed with RINGBACK_URL}
        say "Using the service at $url."
        if [ -e "$file" ]; then say "Its operator's file needs this:" && sed 's/^/    /' "$file"; fi
        return
    fi
    find_ringback
    if [ ! -e "$file" ]; then file=/dev/null; fi
    env -u DATABASE_URL -u RINGBACK_API_KEY -u RINGBACK_MASTER_KEY RINGBACK_CONFIG="$file" \
        RINGBACK_DATA_DIR="$data/ringback" RINGBACK_LISTEN=127.0.0.1:0 RINGBACK_ALLOW_NETWORKS=127.0.0.0/8 \
        RINGBACK_LOG="${RINGBACK_LOG:-warn}" "$ringback" serve >"$data/out" 2>"$data/log" &
    service=$!
    children+=("$service")
    wait_until "the start of the service" listens
    key=$(cat "$data/ringback/api-key")
    if [ "$file" = /dev/null ]; then
        say "A service of our own runs at $url."
    else
        say "A service of our own runs at $url, with this operator's file:"
        sed 's/^/    /' "$file"
    fi
}

# Starts `ringback worker` with these arguments.
start_worker() {
    find_ringback
    RINGBACK_URL="$url" RINGBACK_API_KEY="$key" "$ringback" worker "$@" 2>"$data/worker-log" &
    children+=("$!")
}

# api GET /v1/jobs, or with a body on stdin: api POST /v1/jobs. How long the answer took is in $data/took.
api() {
    local body=()
    case $1 in POST | PATCH) body=(-H 'Content-Type: application/json' --data-binary @-) ;; esac
    : >"$data/answer" # some have none
    curl -sS --fail-with-body -X "$1" -H "Authorization: Bearer $key" ${body[@]+"${body[@]}"} "$url$2" \
        -o "$data/answer" -w '%{time_total}' >"$data/took" || fail "$1 $2 was refused: $(cat "$data/answer")"
    cat "$data/answer"
}

# The value at a place in the JSON on stdin: field result rows 0
field() {
    python3 -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1:]:
    value = value[int(name)] if isinstance(value, list) else value[name]
print(value if isinstance(value, str) else json.dumps(value))' "$@"
}

# The job when it has ended, as JSON.
end_of() {
    local job
    for _ in 1 2 3 4 5 6; do
        job=$(api GET "/v1/jobs/$1?wait_s=20")
        case $(field status <<<"$job") in succeeded | failed | cancelled) printf '%s' "$job"; return ;; esac
    done
    fail "job $1 did not end within two minutes"
}
