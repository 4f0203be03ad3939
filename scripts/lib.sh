# shellcheck shell=bash
# Sourced by the scripts beside it: set-up of a fresh Debian or Ubuntu, words, timed steps.
# Sets ROOT, RINGSHARD_CACHE and, where it is not set, CARGO_TARGET_DIR; exports them.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
RINGSHARD_CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/ringshard"
export ROOT RINGSHARD_CACHE
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$RINGSHARD_CACHE/target}"
# One shell may have been opened before rustup put its folder on the path.
export PATH="$PATH:$HOME/.cargo/bin:$RINGSHARD_CACHE/tools/bin"

RUST_NEEDED=1.88

# RocksDB is most of a first build: what it compiles, how long that takes, and how often to say where it is.
ROCKSDB_OBJECTS=343
ROCKSDB_USUALLY="7 minutes on two cores"
PROGRESS_SECONDS=20

# say TEXT...: progress, on standard error.
say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

# fail CODE TEXT...: ends the script; codes as in the daemon (69 something is missing, 77 permission ...).
fail() {
    local code="$1"
    shift
    say "$*"
    exit "$code"
}

# usage_error TEXT...: an argument that the script does not know.
usage_error() {
    fail 2 "$*; see $(basename "$0") --help"
}

# step NAME COMMAND...: runs a named step and says how long it took; ends the script when it fails.
step() {
    local name="$1" start=$SECONDS code=0
    shift
    say "== $name"
    "$@" || code=$?
    if ((code != 0)); then
        fail "$code" "== $name FAILED after $((SECONDS - start)) s"
    fi
    say "== $name: ok, $((SECONDS - start)) s"
}

# packages_missing [with-test-tools]: Debian packages whose programs are not here, one a line.
packages_missing() {
    if ! command -v g++ >/dev/null || ! command -v make >/dev/null; then echo build-essential; fi
    command -v clang >/dev/null || echo clang
    libclang_present || echo libclang-dev
    command -v pkg-config >/dev/null || echo pkg-config
    command -v git >/dev/null || echo git
    command -v curl >/dev/null || echo curl
    [[ -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt ]] || echo ca-certificates
    if [[ "${1:-}" == with-test-tools ]]; then
        command -v shellcheck >/dev/null || echo shellcheck
        command -v strace >/dev/null || echo strace
        command -v valgrind >/dev/null || echo valgrind
        # The shell has a kill of its own; tests run the program.
        type -P kill >/dev/null || echo procps
    fi
}

# libclang_present: RocksDB's bindings are generated with it.
libclang_present() {
    local candidate
    [[ -n "${LIBCLANG_PATH:-}" ]] && return 0
    for candidate in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so*; do
        [[ -e "$candidate" ]] && return 0
    done
    return 1
}

# install_packages NAME...: with apt; elsewhere says what is missing.
install_packages() {
    local sudo=()
    command -v apt-get >/dev/null || fail 69 "missing: $*; install them with this system's package manager"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail 77 "missing: $*; run as root: apt-get install -y $*"
        sudo=(sudo)
    fi
    say "installing $*"
    "${sudo[@]}" apt-get update -q >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
}

# rust_present: cargo is here and new enough.
rust_present() {
    local version
    version="$(rustc --version 2>/dev/null | cut -d ' ' -f 2)" || return 1
    command -v cargo >/dev/null || return 1
    [[ -n "$version" && "$(printf '%s\n' "$RUST_NEEDED" "$version" | sort -V | head -n 1)" == "$RUST_NEEDED" ]]
}

# set_up [with-test-tools]: everything that a build needs, skipped where it is present.
set_up() {
    local missing
    mapfile -t missing < <(packages_missing "$@")
    if ((${#missing[@]} > 0)); then
        install_packages "${missing[@]}"
    fi
    if ! rust_present; then
        fail 69 "needs Rust $RUST_NEEDED or newer: curl -sSf https://sh.rustup.rs | sh -s -- -y && . ~/.cargo/env" \
            "(with an older one: rustup update stable)"
    fi
    mkdir -p "$CARGO_TARGET_DIR"
}

# with_progress COMMAND...: runs a build and, while that compiles RocksDB, says how far it is. What watches reads a pipe that
# this shell alone holds open, so it ends with this shell, however that ends.
with_progress() {
    local pipe code=0
    exec {pipe}> >(watch_rocksdb)
    "$@" {pipe}>&- || code=$?
    exec {pipe}>&-
    return "$code"
}

# watch_rocksdb: a line every PROGRESS_SECONDS for as long as RocksDB is compiled, until standard input ends.
watch_rocksdb() {
    local start=$SECONDS built code
    while true; do
        code=0
        read -r -t "$PROGRESS_SECONDS" || code=$?
        # A time-out is above 128; all else means that the build is over.
        ((code > 128)) || return 0
        built="$(rocksdb_objects)"
        if ((built > 0)); then
            say "compiling RocksDB: $built of $ROCKSDB_OBJECTS files after $((SECONDS - start)) s;" \
                "the first build's longest part, usually $ROCKSDB_USUALLY"
        fi
    done
}

# rocksdb_objects: how many object files a build of RocksDB has made by now; 0 where none is under way.
rocksdb_objects() {
    local folder
    for folder in "$CARGO_TARGET_DIR"/release/build/librocksdb-sys-*/out; do
        [[ -d "$folder" && ! -e "$folder/librocksdb.a" ]] || continue
        # One that was broken off long ago does not grow any more.
        [[ -n "$(find "$folder" -name '*.o' -mmin -2 -print -quit)" ]] || continue
        find "$folder" -name '*.o' | wc -l
        return 0
    done
    echo 0
}

# find_rocksdb: the RocksDB that was built for release, for builds with other flags; builds it where there is none.
find_rocksdb() {
    local library
    library="$(find "$CARGO_TARGET_DIR/release/build" -name librocksdb.a 2>/dev/null | head -n 1)"
    if [[ -z "$library" ]]; then
        with_progress cargo build --release -p ringshard --lib
        library="$(find "$CARGO_TARGET_DIR/release/build" -name librocksdb.a | head -n 1)"
    fi
    ROCKSDB_LIB_DIR="$(dirname "$library")"
    export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
}

# llvm_tools: the folder of rustc's own llvm-profdata and llvm-cov; fails where rustup's llvm-tools is not installed.
llvm_tools() {
    local folder
    folder="$(rustc --print sysroot)/lib/rustlib/$(rust_host)/bin"
    [[ -x "$folder/llvm-profdata" ]] && printf '%s\n' "$folder"
}

# rust_host: the target triple of this machine.
rust_host() {
    rustc -vV | sed -n 's/^host: //p'
}

# start_node FOLDER COMMAND...: a node in the background, its log in FOLDER; sets server_pid, and address once it is ready.
start_node() {
    local folder="$1" tries
    shift
    "$@" 2>"$folder/server.log" >/dev/null &
    server_pid=$!
    address=""
    for ((tries = 0; tries < 150; tries++)); do
        address="$(sed -n 's/.*: ready game=\([^ ]*\).*/\1/p' "$folder/server.log")"
        [[ -z "$address" ]] || return 0
        running "$server_pid" || fail 1 "the server ended: $(tail -n 1 "$folder/server.log")"
        sleep 0.2
    done
    fail 1 "the server was not ready within 30 s"
}

# running PID: the process is ours and has not ended.
running() {
    (($1 > 0)) && kill -0 "$1" 2>/dev/null
}

# stop NAME PID: TERM, at most 10 s of patience, then KILL.
stop() {
    local name="$1" pid="$2" tries=0
    running "$pid" || return 0
    kill -TERM "$pid" 2>/dev/null || true
    while running "$pid" && ((tries < 100)); do
        sleep 0.1
        tries=$((tries + 1))
    done
    if running "$pid"; then
        say "$name did not end within 10 s: killed"
        kill -KILL "$pid" 2>/dev/null || true
    fi
    wait "$pid" 2>/dev/null || true
}

# install_with_cargo PROGRAM CRATE@VERSION [FLAG]...: builds a program once, into the cache beside the target folder. A tool
# that runs for seconds is not worth minutes of optimization.
install_with_cargo() {
    local program="$1" crate="$2"
    shift 2
    command -v "$program" >/dev/null && return 0
    say "building $crate, once"
    CARGO_TARGET_DIR="$RINGSHARD_CACHE/tools/target" \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --quiet "$crate" --root "$RINGSHARD_CACHE/tools" "$@" || return 1
    rm -rf "$RINGSHARD_CACHE/tools/target"
}
