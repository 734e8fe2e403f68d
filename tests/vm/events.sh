# What happens to the Primary while clients write. Sourced by guest.sh.
#
# Each event begins with alpha as Primary, and ends with one that has answered `promote`; back_to_alpha afterwards makes
# alpha the Primary again, with both copies in sync. With its daemon stopped or killed, a node's host stays and refuses
# connections.

events=(restart-stop restart-kill move failover)

restart-stop() {
    stop_daemon alpha
    start_daemon alpha
    ctl alpha promote r0
}

restart-kill() {
    kill_daemon alpha
    start_daemon alpha
    ctl alpha promote r0
}

# Clients are closed when alpha gives up its role; then their address moves.
move() {
    ctl alpha demote r0 --force
    move_address beta
    ctl beta promote r0
}

failover() {
    kill_daemon alpha
    move_address beta
    # Until beta has noticed, alpha is Primary for it.
    eventually ctl beta promote r0 --peer-is-down
}

is_primary() { ctl "$1" status r0 | grep -q "^r0 *Primary on $1 "; }

back_to_alpha() {
    kill -0 "${pid[alpha]}" 2>/dev/null || start_daemon alpha
    wait_synced
    if ! is_primary alpha; then
        eventually ctl beta demote r0
        move_address alpha
        ctl alpha promote r0
    fi
}

# Lets an event happen while the load writes. Sets gap_s: from its begin to the answer of `promote`.
happen() {
    local began
    sleep 2
    load_ended && die "the load ended before the event: $(cat /run/load.err)"
    began=$(uptime_s)
    "$1"
    gap_s=$(awk "BEGIN { printf \"%.1f\", $(uptime_s) - $began }")
}
