#!/bin/bash
# The guest's test: both nodes of a pair in one machine, used through the kernel's own NBD client. Started by
# `cargo xtask vm` as run.sh, beside the binary `lockstep` and the parts that it sources.
#
# move.sh: a file system, trim and a planned move. ride.sh: restart and failover under load. Then `power`, which lies
# there too, cuts the power of another pair, on block devices that log each write, as often as the file `cuts` says.
# With `matrix` or `bench` in the file `what`: matrix.sh or bench.sh instead of all that. Any step that fails ends the
# test and prints both logs.
set -euo pipefail

. ./pair.sh
. ./client.sh
. ./events.sh
trap report EXIT

step "kernel $(uname -r), $(nbd-client -V 2>&1), $(qemu-nbd --version | head -n 1)"
if [ "$(cat what)" = bench ]; then
    . ./bench.sh
    exit
fi
build_network
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
move_address alpha
wait_synced
ctl alpha status

if [ "$(cat what)" = matrix ]; then
    . ./matrix.sh
    exit
fi
. ./move.sh
. ./ride.sh
stop_daemon alpha
stop_daemon beta

cuts=$(cat cuts)
[ "$cuts" = 0 ] && exit
step "cut the power of block devices that log each write, $cuts times"
rm /dev/shm/alpha.img /dev/shm/beta.img
modprobe -a loop dm-mod dm-log-writes
LOCKSTEP_BIN=$lockstep LOCKSTEP_ROUNDS_POWER_CUTS=$cuts "$PWD/power"
