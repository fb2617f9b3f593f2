# shellcheck shell=bash disable=SC2034,SC2154 # variables are from or for the scripts that source it
# Shared by demo and measure: a software TPM, the development MIS and an agent in a temporary
# directory, all of them stopped and removed on every exit. To be sourced by bash from the top of
# the checkout, with $bin and $mis_bin set.

export TSS2_LOG=all+none # the TSS libraries would write to the terminal on their own account
# Colours, and lines that are written again in place, are for terminals. https://no-color.org
bold='' green='' red='' cyan='' plain='' live=''
if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then
    live=yes
    if [ -z "${NO_COLOR:-}" ]; then
        bold=$'\033[1m' green=$'\033[32m' red=$'\033[31m' cyan=$'\033[36m' plain=$'\033[0m'
    fi
fi

work=$(mktemp -d)
memory='' # a directory that is never on a disk, once it is needed: in_memory
declare -A pids=()

stop() { # NAME [SIGNAL]: ends what this script started, and waits for it
    local pid=${pids[$1]:-}
    [ -n "$pid" ] || return 0
    unset "pids[$1]"
    kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}
cleanup() {
    local status=$?
    set +e # whatever fails from here on, the rest is cleaned up all the same
    trap - EXIT
    trap '' PIPE INT TERM HUP
    case $status in
    0 | 141) ;;
    130) printf '\nInterrupted; cleaned up.\n' ;;
    *)
        printf '\n%sFailed.%s The logs:\n' "$red" "$plain"
        tail -n 40 "$work"/*.log
        ;;
    esac 2>/dev/null
    for name in peer wfm agent mis tpm; do stop "$name"; done
    rm -rf "$work" ${memory:+"$memory"}
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
trap 'exit 141' PIPE # as in: make demo | head

show() { sed 's/^./  &/'; }
fail() { printf '%s\n' "$*" >&2; exit 1; }
wait_for() { # SECONDS WHAT COMMAND…: until the command succeeds
    local limit=$1 deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "timed out after ${limit} s waiting for $what"
        sleep 0.1
    done
}
ask() { curl --silent --show-error --fail --unix-socket "$work/run/agent.sock" "http://agent$1"; }
field() { ask /v1/status | jq --raw-output "$1"; }
state_is() { [ "$(field '.identities[0].state')" = "$1" ]; }
serial_is_not() { local now; now=$(field '.identities[0].svid.serial // empty') && [ -n "$now" ] && [ "$now" != "$1" ]; }
start_agent() { "$bin/miaf-agent" --config "$work/config.toml" run >>"$work/agent.log" 2>&1 & pids[agent]=$!; }

start_tpm() {
    mkdir "$work/tpm"
    for attempt in $(seq 1 20); do # a pair of free ports
        port=$((20000 + RANDOM % 6000 * 2))
        swtpm socket --tpm2 --tpmstate "dir=$work/tpm" --flags not-need-init,startup-clear \
            --server "type=tcp,port=$port" --ctrl "type=tcp,port=$((port + 1))" >"$work/tpm.log" 2>&1 &
        pids[tpm]=$!
        export TPM2TOOLS_TCTI="swtpm:host=127.0.0.1,port=$port" TPM2OPENSSL_TCTI="swtpm:host=127.0.0.1,port=$port"
        sleep 0.3
        if kill -0 "${pids[tpm]}" 2>/dev/null && tpm2_getcap properties-fixed >/dev/null 2>&1; then break; fi
        stop tpm
    done
    [ -n "${pids[tpm]:-}" ] || fail "swtpm does not start: $(cat "$work/tpm.log")"
}
in_memory() { memory=$(mktemp -d /dev/shm/miaf-agent.XXXXXX); }
start_mis() { # FLAGS…: at $mis_address, or a free port
    # By address: not every machine resolves "localhost".
    "$mis_bin/development-mis" --directory "$work/mis" --listen "${mis_address:-127.0.0.1:0}" --host 127.0.0.1 "$@" >"$work/mis.log" 2>&1 &
    pids[mis]=$!
    wait_for 60 "the MIS" grep -q '^listening on ' "$work/mis.log"
    url=$(sed -n 's/^listening on //p' "$work/mis.log")
}
configure() { # the shortest configuration there is
    cat >"$work/config.toml" <<TOML
state_dir = "state"

[mis]
discovery_url = "$url/.well-known/margo"

[mis.trust]
ca_file = "mis/tls-ca.pem"

[bootstrap]
cert_file = "mis/factory.pem"
key = "file:mis/factory.key"

[key]
tcti = "swtpm:host=127.0.0.1,port=$port"

[socket]
path = "run/agent.sock"
TOML
}
