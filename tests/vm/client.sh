# The kernel's NBD client: attach, detach, load. Sourced by guest.sh.
#
# `attach` goes to the address that moves with the Primary. `attach_through_qemu` puts qemu-nbd in between, on the
# client's host: it connects again and sends again what was not answered, which nbd-client does not.

relay_pid=

has_size() { [ "$(blockdev --getsize64 /dev/nbd0)" = $((disk_mib << 20)) ]; }
is_detached() { ! nbd-client -check /dev/nbd0; }

attach() {
    timeout $step_seconds nbd-client "$shared_address" $port -name r0 /dev/nbd0 "$@" || die "attach $*"
    eventually has_size
}

# With keep-alive: an answer that was under way when the address left its node never comes, and nobody says so. The node
# that has the address now does, when it is asked.
attach_through_qemu() {
    local server="driver=nbd,server.type=inet,server.host=$shared_address,server.port=$port,server.keep-alive=on,export=r0"
    sysctl -q net.ipv4.tcp_keepalive_time=3 net.ipv4.tcp_keepalive_intvl=1 net.ipv4.tcp_keepalive_probes=5
    # The command returns when the socket is there.
    qemu-nbd --fork --pid-file=/run/relay.pid --persistent --shared=4 --socket=/run/relay.sock --discard=unmap \
        --cache=none --aio=threads --image-opts "$server,reconnect-delay=120"
    relay_pid=$(cat /run/relay.pid)
    timeout $step_seconds nbd-client -unix /run/relay.sock /dev/nbd0 "$@" || die "attach through QEMU $*"
    eventually has_size
}

relay_ended() { ! kill -0 "$relay_pid"; }

# Also where the server is gone and requests wait: disconnecting ends them.
detach() {
    timeout $step_seconds nbd-client -d /dev/nbd0 || die "nbd-client -d does not return"
    eventually is_detached
    if [ -n "$relay_pid" ]; then
        # All was flushed; one that waits for a server would not end by itself before its delay is over.
        kill -KILL "$relay_pid"
        eventually relay_ended
        relay_pid=
    fi
}

# Starts writers, which verify what they wrote when all of it is written. Sets load_pid.
start_load() {
    fio --name=load --filename="$1" --size=12M --rw=randwrite --bsrange=4k-16k --ioengine=libaio --iodepth=8 --direct=1 \
        --rate=,2m --fsync=64 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --verify_state_save=0 \
        --minimal >/run/load.out 2>/run/load.err &
    load_pid=$!
}

load_ended() { ! kill -0 "$load_pid" 2>/dev/null; }

# Reads and writes that the device has completed.
completed() { awk '{ print $1 + $5 }' /sys/block/nbd0/stat; }

# Waits for its end; it hangs if nothing is completed for this many seconds. Sets outcome and stall_s, the longest time
# that one write took.
end_load() {
    local seen= now until=0
    stall_s=-
    outcome=hangs
    until load_ended; do
        now=$(completed)
        if [ "$now" != "$seen" ]; then
            seen=$now until=$((SECONDS + $1))
        elif [ $SECONDS -ge $until ]; then
            return
        fi
        sleep 0.2
    done
    if wait "$load_pid" && [ "$(cut -d';' -f5 /run/load.out)" = 0 ]; then
        outcome=rides-over
        # Longest latency of a write, from its submission to its answer, in microseconds.
        stall_s=$(cut -d';' -f80 /run/load.out | awk '{ printf "%.1f", $1 / 1000000 }')
    else
        outcome=error
    fi
}
