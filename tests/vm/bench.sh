# Lockstep beside the kernel's DRBD, and beside a server without a mirror, under fio in the guest. Sourced by guest.sh.
#
# All have disks of the same kind, brd, which has nothing to flush; both mirrors talk over loopback, because DRBD 8.4
# knows the first network namespace only. Both ends of DRBD are in one kernel as two resources of one minor each, which
# do not know of each other: a connection is between addresses and does not carry a name. The server without a mirror
# shows what the way through the NBD client costs by itself, and a second DRBD what it costs to check what travels, as
# Lockstep always does.
#
# Prints lines for xtask: `SAMPLE {...}` per run of fio, `CALLS {...}` per system call of a daemon under one load, and
# `NOTE ...` with a sentence for the reader.

# rounds, seconds of a run, and a line `title|rw|bs|iodepth` per load.
{ read -r rounds && read -r runtime_s && readarray -t loads; } <bench
contenders=(drbd lockstep)
# In the first round only.
references=(drbd-crc32c qemu-nbd)
declare -A device=([drbd]=/dev/drbd0 [lockstep]=/dev/nbd0 [drbd-crc32c]=/dev/drbd2 [qemu-nbd]=/dev/nbd1)
# Emulated machines are slow to fill and to compare them.
disk_mib=32
tracing=/sys/kernel/tracing
calls=$tracing/events/raw_syscalls/sys_enter

# The pair of minors $1 and $1 + 1; further options are of the connection.
start_drbd() {
    local minor first=$1 second=$(($1 + 1)) options=(--disk-flushes=no --disk-barrier=no --md-flushes=no)
    # drbdmeta locks the minor there.
    mkdir -p /run/lock
    for minor in "$first" "$second"; do
        drbdmeta --force "$minor" v08 "/dev/ram$minor" internal create-md >/dev/null
        drbdsetup new-resource "r$minor"
        drbdsetup new-minor "r$minor" "$minor" 0
        drbdsetup attach "$minor" "/dev/ram$minor" "/dev/ram$minor" internal "${options[@]}"
    done
    # An emulated machine does not answer within half a second each time.
    local link=(--protocol=C --timeout=90 --ping-timeout=90 --ping-int=30 "${@:2}")
    drbdsetup connect "r$first" "127.0.0.1:770$first" "127.0.0.1:770$second" "${link[@]}"
    drbdsetup connect "r$second" "127.0.0.1:770$second" "127.0.0.1:770$first" "${link[@]}"
    eventually grep -q " $first: cs:Connected" /proc/drbd
    # Both disks are zero: there is nothing to copy.
    drbdsetup new-current-uuid --clear-bitmap "$first"
    eventually grep -q " $first:.* ds:UpToDate/UpToDate C" /proc/drbd
    drbdsetup primary "$first"
}

# Nobody is compared while it does not mirror.
check_mirrors() {
    local first
    for first in 0 2; do
        grep -q " $first: cs:Connected .* ds:UpToDate/UpToDate C" /proc/drbd ||
            die "$(cat /proc/drbd; dmesg | grep drbd)"
    done
    ctl alpha status | grep -q PROTECTED || die 'the pair is not in sync'
}

start_lockstep() {
    address=([alpha]=127.0.0.1 [beta]=127.0.0.2)
    listen=([alpha]=127.0.0.1 [beta]=127.0.0.2)
    disk=([alpha]=/dev/ram4 [beta]=/dev/ram5)
    enter=()
    write_config
    create_md alpha --source
    create_md beta
    start_daemon alpha
    start_daemon beta
    ctl alpha wait r0 --for connected -t $step_seconds
    ctl alpha promote r0
    wait_synced
    ctl alpha status
    nbd-client -unix "$work/alpha.nbd" -name r0 -b 4096 /dev/nbd0
    eventually has_size
}

start_qemu() {
    qemu-nbd --fork --pid-file=/run/qemu.pid --persistent --socket=/run/qemu.sock --format=raw --cache=none \
        --aio=native /dev/ram6
    pid[qemu]=$(cat /run/qemu.pid)
    nbd-client -unix /run/qemu.sock -b 4096 /dev/nbd1
}

# fio's terse line for this device. The last MiB is left out: DRBD keeps its metadata there.
fio_on() {
    fio --name=bench --filename="${device[$1]}" --size=$((disk_mib - 1))M --direct=1 --ioengine=libaio --minimal \
        --randrepeat=0 --norandommap --disk_util=0 --rw="$2" --bs="$3" --iodepth="$4" "${@:5}"
}

# What was used so far, a line each: who, which process, ticks of the processor. Of the two ends, the kernel's workers,
# and interrupts with what they have to do afterwards; at last the number of context switches.
used() {
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v alpha="${pid[alpha]}" -v beta="${pid[beta]}" -v qemu="${pid[qemu]}" '
        {
            match($0, /\(.*\)/)
            name = substr($0, RSTART + 1, RLENGTH - 2)
            split(substr($0, RSTART + RLENGTH + 1), field, " ")
            who = ""
            if ($1 == alpha || $1 == qemu || name ~ /^drbd_._r[02]$/) who = "primary"
            else if ($1 == beta || name ~ /^drbd_._r[13]$/) who = "secondary"
            else if (name ~ /^(kworker|ksoftirqd)/) who = "workers"
            if (who != "") print who, $1, field[12] + field[13]
        }'
    awk '$1 == "cpu" { print "interrupts", 0, $7 + $8 } $1 == "ctxt" { print "switches", 0, $2 }' /proc/stat
}

# As members of a JSON object. A worker that ended in between is not counted.
difference() {
    awk 'NR == FNR { before[$1, $2] = $3; next }
        { used[$1] += $3 - before[$1, $2] }
        END { for (who in used) printf "\"%s\":%d,", who, used[who] }' "$1" "$2"
}

# Reads from the terse line of version 3: requests per second, runtime in ms, mean latency in us, and the client's
# processor time in percent. Those of the other direction are zero.
figures() { awk -F';' '{ print $8 + $49, $9 + $50, $40 + $81, $88 + $89 }'; }

sample() {
    local round=$1 contender=$2 title rw bs depth
    IFS='|' read -r title rw bs depth <<<"$3"
    used >/run/before
    fio_on "$contender" "$rw" "$bs" "$depth" --time_based --runtime="$runtime_s" | figures >/run/figures
    used >/run/after
    printf 'SAMPLE {"round":%d,"contender":"%s","load":"%s",' "$round" "$contender" "$title"
    difference /run/before /run/after
    awk '{ printf "\"iops\":%s,\"runtime_ms\":%s,\"latency_us\":%s,\"client_percent\":%s}\n", $1, $2, $3, $4 }' \
        /run/figures
}

# What the two daemons ask of the kernel under a load. By itself, because counting costs time.
count_calls() {
    local title rw bs depth requests
    IFS='|' read -r title rw bs depth <<<"$1"
    # Appended: opened for a new text, the file forgets what it counts.
    echo 'hist:keys=common_pid,id.syscall' >>"$calls/trigger"
    requests=$(fio_on lockstep "$rw" "$bs" "$depth" --time_based --runtime=2 | figures | awk '{ print $1 * $2 / 1000 }')
    echo 'hist:keys=common_pid,id.syscall:pause' >>"$calls/trigger"
    local node threads
    for node in "${nodes[@]}"; do
        threads=$(cd "/proc/${pid[$node]}/task" && echo *)
        awk -v threads="$threads" -v head="\"load\":\"$title\",\"node\":\"$node\",\"requests\":$requests" '
            BEGIN { count = split(threads, list, " "); for (i = 1; i <= count; i++) is_ours[list[i]] = 1 }
            /common_pid:/ {
                match($0, /common_pid: *[0-9]+/); thread = substr($0, RSTART + 11, RLENGTH - 11) + 0
                match($0, /sys_[a-z0-9_]+/); name = substr($0, RSTART + 4, RLENGTH - 4)
                match($0, /hitcount: *[0-9]+/); hits = substr($0, RSTART + 9, RLENGTH - 9) + 0
                if (thread in is_ours) total[name] += hits
            }
            END { for (name in total) printf "CALLS {%s,\"name\":\"%s\",\"count\":%d}\n", head, name, total[name] }
        ' "$calls/hist"
    done
    echo '!hist:keys=common_pid,id.syscall' >>"$calls/trigger"
}

step 'load the modules'
modprobe -a drbd nbd
modprobe brd rd_nr=7 rd_size=$((disk_mib << 10))
mountpoint -q $tracing || mount -t tracefs tracing $tracing
step 'fill the disks, so that nothing is read from holes'
for number in {0..6}; do dd if=/dev/zero of="/dev/ram$number" bs=1M count=$disk_mib oflag=direct status=none; done
step 'start all'
start_drbd 0
start_drbd 2 --data-integrity-alg=crc32c
cat /proc/drbd
start_lockstep
start_qemu

for round in $(seq "$rounds"); do
    step "round $round"
    for load in "${loads[@]}"; do
        for contender in "${contenders[@]}"; do sample "$round" "$contender" "$load"; done
        [ "$round" = 1 ] || continue
        for contender in "${references[@]}"; do sample "$round" "$contender" "$load"; done
    done
    check_mirrors
done

step 'the speed of checksums here'
speed=$(fio --crctest=crc32c | awk '$1 == "crc32c:" { print $2, $3 }')
echo "NOTE One thread of this machine computes CRC32C at $speed."
step 'count system calls'
for load in "${loads[@]}"; do count_calls "$load"; done
nbd-client -d /dev/nbd0
nbd-client -d /dev/nbd1
kill -KILL "${pid[qemu]}"
eventually ctl alpha demote r0
cmp /dev/ram0 /dev/ram1 --bytes=$(((disk_mib - 1) << 20))
cmp /dev/ram2 /dev/ram3 --bytes=$(((disk_mib - 1) << 20))
cmp /dev/ram4 /dev/ram5
step 'all pairs are equal'
