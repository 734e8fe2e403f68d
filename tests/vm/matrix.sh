# Every way to attach against every event; prints a table. Sourced by guest.sh, for a night.
#
# Nothing is judged but what must hold for all: the load's verification finds nothing wrong where it rides over, the
# device can be detached, and both copies end equal. Gap: from the event to the answer of `promote`. Stall: the longest
# time that one write took.

hang_seconds=40
ways=(
    'through qemu-nbd|-connections 4'
    'through qemu-nbd|-connections 4 -timeout 60'
    'nbd-client|'
    'nbd-client|-connections 4'
    'nbd-client|-timeout 5'
    'nbd-client|-connections 4 -timeout 5 -persist'
    'nbd-client|-nonetlink -connections 4 -timeout 5 -persist'
)

row() { printf 'MATRIX | %-16s | %-54s | %-12s | %-10s | %6s | %6s |\n' "$@"; }

try() {
    local client=$1 how=$2 event=$3
    # Options are words.
    # shellcheck disable=SC2086
    case $client in
        nbd-client) attach $how ;;
        *) attach_through_qemu $how ;;
    esac
    start_load /dev/nbd0
    happen "$event"
    end_load $hang_seconds
    row "$client" "$how" "$event" "$outcome" "$gap_s" "$stall_s"
    [ $outcome = rides-over ] || cat /run/load.err
    detach
    wait "$load_pid" || true
    back_to_alpha
}

modprobe nbd
row client options event outcome 'gap s' 'stall s'
for way in "${ways[@]}"; do
    for event in "${events[@]}"; do
        step "$way, $event"
        try "${way%%|*}" "${way#*|}" "$event"
    done
done
ctl alpha demote r0
cmp /dev/shm/alpha.img /dev/shm/beta.img
step 'all equal'
