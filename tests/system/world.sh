# What both stories share: steps, waiting, the MIS, the world outside the machine. To be sourced by bash.

now() { echo "${EPOCHREALTIME/./}"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }
wait_for() { # SECONDS WHAT COMMAND…: until the command succeeds
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/waited.log" 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for $what; last seen: $(tail -n 3 "$work/waited.log")"
        sleep 0.1
    done
}
gone() { # PID…: none of them runs any more
    ! kill -0 "$@" 2>/dev/null
}

# Asked of systemd directly: there is a time before the bus.
is_up='test "$(systemctl show --property FinishTimestampMonotonic --value)" != 0'

start_mis() { # FLAGS…
    "$mis_bin/development-mis" --folder "$work/mis" --listen 0.0.0.0:443 --host mis.factory.example "$@" \
        >"$work/mis.log" 2>&1 &
    mis=$!
    wait_for 20 "the MIS" grep -q '^listening on ' "$work/mis.log"
}
stop_mis() {
    kill "$mis"
    wait_for 10 "the MIS to end" gone "$mis"
}
