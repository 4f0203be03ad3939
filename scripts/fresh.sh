# shellcheck shell=bash
# Sourced by scripts/test after lib.sh: both commands of the README where nothing was set up yet.
#
# Everything lies in one temporary folder: a clone of what is committed, an empty home, and where possible a minimal Debian 12
# to run in, so that a package that set_up forgets is found missing. Mounts are made in a mount namespace of their own and are
# not there outside of it: removing the folder cannot reach through one, and they end with the last process inside.

FRESH_SUITE=bookworm
fresh_folder=""
fresh_pid=0
# How a command gets to where it is tried, and the surroundings that it finds there.
fresh_way=()
fresh_surroundings=()

# fresh: the whole of it; the first command that fails ends the script.
fresh() {
    if [[ -n "$(git -C "${ROOT:?}" status --porcelain)" ]]; then
        say "what is not committed is not tried"
    fi
    fresh_begin
    if fresh_debian_possible; then
        fresh_debian
        fresh_clone
        say "trying in a minimal Debian 12"
    else
        say "trying on this machine, with an empty home: a minimal Debian 12 needs root, namespaces, rustup's Rust and Debian's apt"
        fresh_machine
        fresh_clone
    fi
    step "scripts/run --seconds 20" fresh_try scripts/run --seconds 20
    step "scripts/test" fresh_try scripts/test
    fresh_end
}

# fresh_begin: the folder, which goes however this ends.
fresh_begin() {
    trap fresh_end EXIT
    trap 'exit 130' INT TERM
    fresh_folder="$(mktemp -d "${TMPDIR:-/tmp}/ringshard-fresh.XXXXXX")"
    mkdir "$fresh_folder/root" "$fresh_folder/home" "$fresh_folder/tmp"
}

# fresh_end: nothing runs any more and nothing is left.
fresh_end() {
    trap '' INT TERM
    if running "$fresh_pid"; then
        kill -TERM -- "-$fresh_pid" 2>/dev/null || true
        stop "what was tried" "$fresh_pid"
        kill -KILL -- "-$fresh_pid" 2>/dev/null || true
    fi
    fresh_pid=0
    if [[ -n "$fresh_folder" ]]; then
        rm -rf --one-file-system "$fresh_folder"
    fi
    fresh_folder=""
}

# fresh_debian_possible: root, namespaces, a Rust of its own folder, and an archive to take packages from.
fresh_debian_possible() {
    ((EUID == 0)) && [[ "$(fresh_rust)" != /usr ]] || return 1
    command -v apt-get >/dev/null && unshare --mount --pid --fork true 2>/dev/null || return 1
    # An image without apt's lists does not know yet what its archives are.
    [[ -n "$(fresh_mirror)" ]] || apt-get update -q >&2
    [[ -n "$(fresh_mirror)" ]]
}

# fresh_rust: where this machine's Rust lies.
fresh_rust() {
    rustc --print sysroot
}

# fresh_mirror: the Debian archive that this machine's apt uses.
fresh_mirror() {
    # shellcheck disable=SC2016 # a variable of apt's
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | head -n 1
}

# fresh_debian: makes a minimal Debian 12, and leads the commands into it.
fresh_debian() {
    local tool=debootstrap root="$fresh_folder/root"
    if command -v mmdebstrap >/dev/null; then tool=mmdebstrap; fi
    command -v "$tool" >/dev/null || install_packages "$tool"
    step "a minimal Debian 12 by $tool" fresh_bootstrap "$tool"
    # What whoever connects a machine sets up: where names are looked up, and certificates of the site.
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir -p "$root/usr/local/share/ca-certificates" "$root/opt/rust"
    if [[ -d /usr/local/share/ca-certificates ]]; then
        cp -rL /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    fi
    fresh_way=(unshare --mount --propagation private --pid --fork --kill-child
        bash -c "$(declare -f fresh_inside); fresh_inside \"\$@\"" bash "$root" "$(fresh_rust)")
    fresh_surroundings=(-C /ringshard HOME=/root "PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

# fresh_bootstrap TOOL: what is essential, and apt.
fresh_bootstrap() {
    local log="$fresh_folder/bootstrap.log"
    "$1" --variant=minbase "$FRESH_SUITE" "$fresh_folder/root" "$(fresh_mirror)" >"$log" 2>&1 && return
    tail -n 20 "$log" >&2
    return 1
}

# fresh_inside ROOT RUST COMMAND...: the first process of a namespace of its own, with which all others end.
fresh_inside() {
    local root="$1" rust="$2"
    shift 2
    mount -t proc proc "$root/proc" && mount --rbind /sys "$root/sys" && mount --rbind /dev "$root/dev" &&
        mount --bind "$rust" "$root/opt/rust" && mount -o remount,bind,ro "$root/opt/rust" || return
    trap 'exit 143' TERM
    chroot "$root" "$@"
}

# fresh_machine: leads the commands to the clone on this machine, where they find an empty home.
fresh_machine() {
    local home="$fresh_folder/home"
    fresh_way=()
    fresh_surroundings=(-C "$fresh_folder/root/ringshard" "HOME=$home" "TMPDIR=$fresh_folder/tmp"
        "PATH=$(fresh_rust)/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

# fresh_clone: of what is committed here.
fresh_clone() {
    git clone --quiet --no-hardlinks "$ROOT" "$fresh_folder/root/ringshard"
}

# fresh_try COMMAND...: in surroundings without anything of this session's but its terminal's kind and its proxies; a process
# group of its own, so that all of it can be ended.
fresh_try() {
    local name code=0 kept=()
    for name in TERM http_proxy https_proxy no_proxy; do
        if [[ -n "${!name:-}" ]]; then kept+=("$name=${!name}"); fi
    done
    setsid "${fresh_way[@]}" env -i "${fresh_surroundings[@]}" LANG=C.UTF-8 "${kept[@]}" "$@" &
    fresh_pid=$!
    wait "$fresh_pid" || code=$?
    fresh_pid=0
    return "$code"
}
