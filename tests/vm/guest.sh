#!/bin/bash
# The guest's test: both nodes of a pair in one machine, used through the kernel's own NBD client. Started by
# `cargo xtask vm` as run.sh, beside the binary `lockstep`.
#
# Proves that mkfs, mount and fio work on /dev/nbd0, and that after a planned move the other node holds the same file
# system: it checks clean, its files have the same sums, and the two disks are equal byte for byte. Then `power`, which
# lies there too, cuts the power of another pair, on block devices that log each write, as often as the file `cuts`
# says. Any step that fails ends the test and prints both logs.
set -euo pipefail

lockstep=$PWD/lockstep
work=/run/pair
disk_mib=256
step_seconds=60
nodes=(alpha beta)
declare -A pid=()

step() { printf '\n[%s] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }

die() {
    echo "FAILED: $*"
    exit 1
}

report() {
    local status=$? node
    [ $status = 0 ] && return
    for node in "${nodes[@]}"; do
        echo "--- status of $node"
        ctl "$node" status || true
        echo "--- log of $node"
        tail -n 60 "$work/$node.log" || true
    done
    echo '--- kernel'
    dmesg | tail -n 20
}

# Offline verbs and the daemon itself name the node; the others only need its socket.
options_of() {
    options=(--config "$work/lockstep.toml" --node "$1" --state-dir "$work/$1" --socket "$work/$1.sock")
}

create_md() {
    options_of "$1"
    "$lockstep" "${options[@]}" create-md r0 "${@:2}"
}

ctl() {
    local name=$1
    shift
    "$lockstep" --socket "$work/$name.sock" "$@"
}

# Repeats a command until it succeeds.
eventually() {
    local end=$((SECONDS + step_seconds))
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            "$@" || die "still fails after $step_seconds s: $*"
            return
        fi
        sleep 0.3
    done
}

write_config() {
    mkdir -p "$work/alpha" "$work/beta"
    (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$work/secret")
    cat >"$work/lockstep.toml" <<TOML
cluster = "vm"
secret-file = "$work/secret"

[node.alpha]
address = "127.0.0.1:7801"
nbd = ["unix:$work/alpha.nbd"]

[node.beta]
address = "127.0.0.1:7802"
nbd = ["unix:$work/beta.nbd"]

[[resource]]
name = "r0"
disk.alpha = "/dev/shm/alpha.img"
disk.beta = "/dev/shm/beta.img"
TOML
}

start_daemon() {
    options_of "$1"
    # Not through a function: $! must be the daemon, not a shell around it.
    "$lockstep" "${options[@]}" daemon >"$work/$1.log" 2>&1 &
    pid[$1]=$!
    eventually ctl "$1" status
}

stop_daemon() {
    kill -TERM "${pid[$1]}"
    wait "${pid[$1]}" || die "the daemon of $1 ended with status $?"
}

has_size() { [ "$(blockdev --getsize64 /dev/nbd0)" = $((disk_mib << 20)) ]; }
is_detached() { ! nbd-client -check /dev/nbd0; }

attach() {
    nbd-client -unix "$work/$1.nbd" -name r0 /dev/nbd0
    eventually has_size
}

detach() {
    nbd-client -d /dev/nbd0
    eventually is_detached
}

sums() { (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

fill() {
    mkdir /mnt/tree
    local i
    for i in $(seq 1 40); do
        head -c $((i * 9973)) /dev/urandom >"/mnt/tree/file$i"
    done
    sync -f /mnt
    fio --name=verify --filename=/mnt/fio.data --size=24M --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
        --iodepth=8 --direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 \
        --verify_state_save=0 --minimal >/run/fio.out || { cat /run/fio.out; die 'fio'; }
    rm /mnt/tree/file7
}

trap report EXIT
step "kernel $(uname -r)"
modprobe nbd
write_config
for name in "${nodes[@]}"; do truncate -s "${disk_mib}M" "/dev/shm/$name.img"; done

step 'make metadata, start both daemons'
create_md alpha --source
create_md beta
start_daemon alpha
start_daemon beta
ctl alpha wait r0 --for connected -t $step_seconds

step 'promote alpha, wait for the first sync'
ctl alpha promote r0
ctl alpha wait r0 --for uptodate -t $step_seconds
ctl beta wait r0 --for uptodate -t $step_seconds
ctl alpha status

step 'attach alpha, make a file system, write'
attach alpha
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
fill
sums >/run/before
umount /mnt
detach

step 'move to beta'
# The server may notice the closed socket a moment after the kernel closed it.
eventually ctl alpha demote r0
ctl beta promote r0
ctl beta wait r0 --for primary -t $step_seconds
ctl beta status

step 'attach beta, check, compare'
attach beta
e2fsck -fn /dev/nbd0
mount -o ro /dev/nbd0 /mnt
sums >/run/after
umount /mnt
detach
[ "$(wc -l </run/before)" = 40 ] || die "$(wc -l </run/before) files instead of 40"
cmp /run/before /run/after

step 'stop both, compare the disks'
eventually ctl beta demote r0
stop_daemon alpha
stop_daemon beta
cmp /dev/shm/alpha.img /dev/shm/beta.img
step 'all equal'

cuts=$(cat cuts)
[ "$cuts" = 0 ] && exit
step "cut the power of block devices that log each write, $cuts times"
rm /dev/shm/alpha.img /dev/shm/beta.img
modprobe -a loop dm-mod dm-log-writes
LOCKSTEP_BIN=$lockstep LOCKSTEP_ROUNDS_POWER_CUTS=$cuts "$PWD/power"
