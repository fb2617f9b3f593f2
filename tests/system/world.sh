# What both stories share: steps, waiting, the MIS, the world outside the machine. To be sourced by bash.

fail() { printf '%s\n' "$*" >&2; exit 1; }
wait_for() { # SECONDS WHAT COMMAND…: until the command succeeds
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/waited.log" 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for $what; last seen: $(tail -n 3 "$work/waited.log")"
        sleep "${poll:-0.1}"
    done
}
gone() { # PID…: none of them runs any more
    ! kill -0 "$@" 2>/dev/null
}


start_mis() { # FLAGS…
    "$target/debug/development-mis" --folder "$work/mis" --listen 0.0.0.0:443 --host mis.factory.example "$@" \
        >"$work/mis.log" 2>&1 &
    mis=$!
    wait_for 20 "the MIS" grep -q '^listening on ' "$work/mis.log"
}
stop_mis() {
    kill "$mis"
    wait_for 10 "the MIS to end" gone "$mis"
}

# --- the machine, and the agent in it

boot() { # until all units that belong to the start are up
    power_on
    # Asked of systemd without the bus, which is not there from the beginning.
    wait_for 120 "the machine to be up" guest 'test "$(systemctl show --property FinishTimestampMonotonic --value)" -gt 0'
}

documented() { # [NAME]: the commands of docs/operations.md in the blocks marked "sh NAME", as they stand there
    awk -v mark="^\`\`\`sh${1:+ $1}\$" '/^```/ { inside = !inside && $0 ~ mark; next } inside' docs/operations.md | grep . \
        || fail "docs/operations.md has no block marked \"sh${1:+ $1}\""
}
journal() { # ARGUMENT…: the agent's entries, with those that are just being written
    guest "journalctl --sync; journalctl --unit=miaf-agent $*"
}
field() { guest 'miaf-agent status --json' | jq --raw-output "$1"; }
state_is() { [ "$(field .state)" = "$1" ]; }
is_the_same_device() {
    local id
    id=$(field .spiffeId)
    [ "$id" = "$(cat "$work/identity")" ] || fail "it was $(cat "$work/identity") and now is $id"
}
main_pid() { guest 'systemctl show --property MainPID --value miaf-agent'; }
other_pid_than() { # PID
    local pid
    pid=$(main_pid)
    [ "$pid" -gt 0 ] && [ "$pid" != "$1" ]
}
socket_files() { guest 'stat --format %n:%i /run/miaf-agent/*.sock'; }
lockout_counter() { guest 'tpm2_getcap properties-variable' | sed -n 's/^TPM2_PT_LOCKOUT_COUNTER: *//p'; }
expect_output() { # LINE…: what comes in is exactly this
    diff <(printf '%s' "${1+$(printf '%s\n' "$@")}" | sed '$a\') <(cat) >"$work/diff" || fail "not as it should be (< expected):
$(cat "$work/diff")"
}

ask_all_the_time() { # in the guest, until everybody_was_answered
    guest 'rm -f /tmp/asked /tmp/enough
        ask() {
            until [ -e /tmp/enough ]; do
                curl --silent --max-time 30 --output /dev/null --write-out "%{http_code}\n" \
                    --unix-socket /run/miaf-agent/agent.sock http://agent/healthz
                sleep 0.1
            done >>/tmp/asked
            touch /tmp/asked.all
        }
        ask </dev/null >/dev/null 2>&1 & disown'
}
everybody_was_answered() {
    guest 'touch /tmp/enough'
    wait_for 40 "those who ask to end" guest 'test -e /tmp/asked.all'
    guest 'rm /tmp/asked.all; sort /tmp/asked | uniq' | expect_output 200
}

# --- a TPM that the key was not made in

other_tpm() {
    mkdir -p "$work/other-tpm"
    swtpm socket --tpm2 --tpmstate "dir=$work/other-tpm" --flags not-need-init,startup-clear \
        --server type=tcp,port=2321 --ctrl type=tcp,port=2322 >>"$work/tpm.log" 2>&1 & # these ports are this network's own
    other_tpm=$!
    wait_for 10 "the other TPM" env TPM2TOOLS_TCTI=swtpm:port=2321 tpm2_getcap properties-fixed
}
sign_here() {
    echo message | TPM2OPENSSL_TCTI=swtpm:port=2321 openssl dgst -sha256 -provider tpm2 -provider default -sign "$work/key.pem"
}
stop_other_tpm() {
    kill "$other_tpm"
    wait_for 10 "the other TPM to end" gone "$other_tpm"
}
