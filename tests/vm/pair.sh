# Both nodes of a pair in one guest, and what an operator types on them. Sourced by guest.sh.
#
# Three hosts on one network: the guest itself is the client; alpha and beta are network namespaces with an address
# each. Whoever is Primary also has the address that clients know, as a cluster manager moves it. The control and the
# unix socket of each node are reachable from everywhere.

lockstep=$PWD/lockstep
work=/run/pair
disk_mib=128
step_seconds=60
nodes=(alpha beta)
declare -A address=([alpha]=10.9.0.1 [beta]=10.9.0.2) pid=()
declare -A disk=([alpha]=/dev/shm/alpha.img [beta]=/dev/shm/beta.img)
# The address of clients moves between the nodes.
declare -A listen=([alpha]=0.0.0.0 [beta]=0.0.0.0)
# What a command begins with to run on a node's host.
declare -A enter=([alpha]='ip netns exec alpha' [beta]='ip netns exec beta')
shared_address=10.9.0.100
port=10809

step() { printf '\n[%s] %s\n' "$(uptime_s)" "$*"; }

uptime_s() { cut -d' ' -f1 /proc/uptime; }

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

write_config() {
    mkdir -p "$work/alpha" "$work/beta"
    (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$work/secret")
    cat >"$work/lockstep.toml" <<TOML
cluster = "vm"
secret-file = "$work/secret"

[node.alpha]
address = "${address[alpha]}:7800"
nbd = ["unix:$work/alpha.nbd", "${listen[alpha]}:$port"]
tls = "off"

[node.beta]
address = "${address[beta]}:7800"
nbd = ["unix:$work/beta.nbd", "${listen[beta]}:$port"]
tls = "off"

[[resource]]
name = "r0"
disk.alpha = "${disk[alpha]}"
disk.beta = "${disk[beta]}"
TOML
}

build_network() {
    local node
    modprobe -a veth bridge
    ip link add lan type bridge forward_delay 0
    ip addr add 10.9.0.10/24 dev lan
    ip link set lan up
    for node in "${nodes[@]}"; do
        ip netns add "$node"
        ip link add "$node" type veth peer name eth0 netns "$node"
        ip link set "$node" master lan up
        ip -n "$node" link set lo up
        ip -n "$node" link set eth0 up
        ip -n "$node" addr add "${address[$node]}/24" dev eth0
    done
}

# The address of clients leaves whoever has it, and comes to this node; neighbours are told, as cluster managers do.
move_address() {
    local node
    for node in "${nodes[@]}"; do
        ip -n "$node" addr del "$shared_address/24" dev eth0 2>/dev/null || true
    done
    ip -n "$1" addr add "$shared_address/24" dev eth0
    ip netns exec "$1" arping -q -U -c 1 -I eth0 "$shared_address" || true
}

start_daemon() {
    options_of "$1"
    # Not through a function: $! must be the daemon, not a shell around it. `ip netns exec` becomes what it starts.
    # shellcheck disable=SC2086
    ${enter[$1]-} "$lockstep" "${options[@]}" daemon >>"$work/$1.log" 2>&1 &
    pid[$1]=$!
    eventually ctl "$1" status
}

stop_daemon() {
    kill -TERM "${pid[$1]}"
    wait "${pid[$1]}" || die "the daemon of $1 ended with status $?"
}

kill_daemon() {
    kill -KILL "${pid[$1]}"
    wait "${pid[$1]}" 2>/dev/null || true
}

wait_synced() { ctl alpha wait r0 --for synced -t $step_seconds >/dev/null; }

