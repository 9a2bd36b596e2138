#!/usr/bin/env bash
# `make image-check`: builds Dockerfile.koyeb and runs what it built, where no Docker engine runs.
#
# Needs root, buildah and debootstrap (Debian: apt-get install buildah debootstrap), and .venv for
# the client. A base made by debootstrap stands in for python:3.11-slim; BASE_IMAGE=… names another.
# torch comes from the folder that PIP_FIND_LINKS names, if set: the CPU build, for a machine without
# a GPU. It is judged: the process isn't root, /health turns 200 on $PORT, the client's suites pass,
# SIGTERM drains a running request, the exit code is 0, no weights are inside but the pocket model's.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK="${IMAGE_CHECK_DIR:-${TMPDIR:-/tmp}/glasshouse-image-check}"
IMAGE=localhost/glasshouse
PORT="${PORT:-8765}"
PYTHON="${PYTHON:-.venv/bin/python}"
READY_S=600 # seconds on a quiet machine; one that is busy with other things may need minutes
DRAIN_S=300 # a second of work; on a machine that is busy with other things, much more
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

say() { printf '== %s\n' "$*"; }
fail() { printf 'image-check: %s\n' "$*" >&2; exit 1; }

for tool in buildah debootstrap curl; do
    command -v "$tool" > /dev/null || fail "$tool is missing; on Debian: apt-get install $tool"
done
[ "$(id -u)" = 0 ] || fail "it must run as root: debootstrap and chroot need it"
mkdir -p "$WORK"

# ------------------------------------------------------------------------------------------ the base
if [ -z "${BASE_IMAGE:-}" ]; then
    BASE_IMAGE=localhost/glasshouse-base
    if ! buildah inspect --type image "$BASE_IMAGE" > /dev/null 2>&1; then
        say "making a base with debootstrap, to stand in for python:3.11-slim"
        rm -rf "$WORK/base"
        mkdir -p "$WORK/base"
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv \
            bookworm "$WORK/base/rootfs" > "$WORK/debootstrap.log" \
            || fail "debootstrap failed: see $WORK/debootstrap.log"
        # pip inside must trust what pip outside trusts.
        cp /etc/ssl/certs/ca-certificates.crt "$WORK/base/rootfs/etc/ssl/certs/ca-certificates.crt"
        printf 'FROM scratch\nADD rootfs /\nENV LANG=C.UTF-8\n' > "$WORK/base/Dockerfile"
        buildah bud -q -t "$BASE_IMAGE" "$WORK/base" > /dev/null
        rm -rf "$WORK/base"
    fi
fi

# ----------------------------------------------------------------------------------------- the build
mounts=() environment=(--env PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    mounts+=(-v "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro")
    environment+=(--env "PIP_FIND_LINKS=$PIP_FIND_LINKS")
fi
say "building $IMAGE on $BASE_IMAGE"
started=$SECONDS
buildah bud --layers --network host --build-arg "BASE_IMAGE=$BASE_IMAGE" "${environment[@]}" \
    "${mounts[@]}" -t "$IMAGE" -f Dockerfile.koyeb . > "$WORK/build.log" 2>&1 \
    || { tail -20 "$WORK/build.log" >&2; fail "the build failed: see $WORK/build.log"; }
say "built in $((SECONDS - started)) s"

# ------------------------------------------------------------------------------------------- the run
container=$(buildah from --pull-never "$IMAGE")
run_pid='' server_pid=''
# buildah starts children from any of its threads.
descendants() { for child in $(cat "/proc/$1/task/"*/children 2> /dev/null); do
    echo "$child"; descendants "$child"; done; }
cleanup() {
    if [ -n "$run_pid" ]; then
        # shellcheck disable=SC2046 # one argument for each process
        kill -KILL $(descendants "$run_pid") 2> /dev/null || true
        wait "$run_pid" 2> /dev/null || true
    fi
    buildah rm "$container" > /dev/null 2>&1 || true
}
trap cleanup EXIT

root=$(buildah mount "$container")
say "the image's size: $(du -sh --apparent-size "$root" | cut -f1)" \
    "($(du -sh --apparent-size "$root/opt/venv" | cut -f1) of it Python packages)"
weights=$(find "$root" -xdev \( -name '*.safetensors' -o -name '*.gguf' -o -name 'pytorch_model*' \) \
    -not -path "$root/app/pocket/model/*")
[ -z "$weights" ] || fail "weights are inside: $weights"
buildah umount "$container" > /dev/null

configured_user=$(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")
mapfile -t command < <(buildah inspect --format '{{range .OCIv1.Config.Cmd}}{{println .}}{{end}}' \
    "$container" | sed '/^$/d')
say "running as user $configured_user: ${command[*]}"
buildah run --isolation chroot --network host \
    --env PORT="$PORT" --env MODEL_NAME=pocket/model --env SERVED_MODEL_NAME=pocket \
    --env SHUTDOWN_TIMEOUT="$DRAIN_S" \
    "$container" -- "${command[@]}" > "$WORK/run.log" 2>&1 &
run_pid=$!

health() { curl -s -o "$WORK/health.json" -w '%{http_code}' "http://127.0.0.1:$PORT/health" || true; }
deadline=$((SECONDS + READY_S)) seen=''
until [ "$(health)" = 200 ]; do
    code=$(health)
    case " $seen " in *" $code "*) ;; *) seen="$seen $code" ;; esac
    kill -0 "$run_pid" 2> /dev/null || { tail -20 "$WORK/run.log" >&2; fail "the server ended"; }
    [ "$SECONDS" -lt "$deadline" ] || { tail -20 "$WORK/run.log" >&2; fail "not ready in $READY_S s"; }
    sleep 0.2
done
say "/health: 200 (before:${seen:- nothing}; 000 is: not listening yet)"

# The server is the descendant of `buildah run` that was started as the image's command.
for pid in $(descendants "$run_pid"); do
    if tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q '^[^ ]*python[^ ]* koyeb_api_server.py'; then
        server_pid=$pid
        break
    fi
done
[ -n "$server_pid" ] || fail "the server's process was not found"
uid=$(awk '/^Uid:/ {print $2}' "/proc/$server_pid/status")
[ "$uid" != 0 ] || fail "the server runs as root"
say "the server's user id is $uid"

"$PYTHON" test_client.py --url "http://127.0.0.1:$PORT" --test all --json "$WORK/client.json" \
    || fail "the client found failures"

# --------------------------------------------------------------------------------------------- the end
say "SIGTERM while an answer is being written"
curl -s -N "http://127.0.0.1:$PORT/v1/completions" -H 'Content-Type: application/json' -d \
    '{"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "stream": true}' \
    > "$WORK/drained.txt" &
answer_pid=$!
until grep -q '^data: ' "$WORK/drained.txt" 2> /dev/null; do
    kill -0 "$answer_pid" 2> /dev/null || fail "no answer to drain"
    sleep 0.05
done
kill -TERM "$server_pid"
wait "$answer_pid" || fail "the answer was cut off"
grep -q '"finish_reason": *"length"' "$WORK/drained.txt" \
    || { tail -3 "$WORK/drained.txt" >&2; fail "the answer was not finished"; }
grep -q '^data: \[DONE\]' "$WORK/drained.txt" || fail "the stream was not ended"
code=0
wait "$run_pid" || code=$?
run_pid='' server_pid=''
[ "$code" = 0 ] || { tail -20 "$WORK/run.log" >&2; fail "the server's exit code is $code"; }
say "the answer was finished, and the server ended with code 0"
say "image-check passed"
