# What the stories share: steps, waiting, the MIS, the world outside the machine. To be sourced by bash.

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
    "$target/debug/development-mis" --directory "$work/mis" --listen 0.0.0.0:443 --host mis.factory.example "$@" \
        >"$work/mis.log" 2>&1 &
    mis=$!
    wait_for 20 "the MIS" grep -q '^listening on ' "$work/mis.log"
}
stop_mis() {
    kill "$mis"
    wait_for 10 "the MIS to end" gone "$mis"
}

answers() { # KIND: how many the MIS has given so far
    grep -c "POST .*/$1 -> 20" "$work/mis.log" || true
}
more_answers() { # KIND NUMBER
    [ "$(answers "$1")" -gt "$2" ]
}

# --- the machine, and the agent in it

boot() { # until all units that belong to the start are up
    power_on
    # Asked of systemd without the bus, which is not there from the beginning.
    wait_for 120 "the machine to be up" guest 'test "$(systemctl show --property FinishTimestampMonotonic --value)" -gt 0'
}

documented() { # [NAME [PAGE]]: the commands of docs/PAGE in the blocks marked "sh NAME", as they stand there
    documented_as sh "$@"
}
documented_as() { # LANGUAGE [NAME [PAGE]]: the same of another language
    local page=docs/${3:-operations.md}
    awk -v mark="^\`\`\`$1${2:+ $2}\$" '/^```/ { inside = !inside && $0 ~ mark; next } inside' "$page" | grep . \
        || fail "$page has no block marked \"$1${2:+ $2}\""
}
journal() { # ARGUMENT…: the agent's entries, with those that are just being written
    guest "journalctl --sync; journalctl --unit=miaf-agent $*"
}
field() { guest 'miaf-agent status --json' | jq --raw-output "$1"; }
state() { field '.identities[0].state'; }
state_is() { [ "$(state)" = "$1" ]; }
is_the_same_device() {
    local id
    id=$(field '.identities[0].spiffeId')
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

# --- a machine in qemu that has the package from the start, and boots fast

a_device_enrolls() { # CONFIGURATION FLAGS…: beside that of the documentation, and of the MIS
    network=on
    start_mis "${@:2}"
    put_the_package_in "$work/disk.img" "$1"
    boot
    plug_in
    wait_for 120 "the first identity" state_is active
    field '.identities[0].spiffeId' >"$work/identity"
}
put_the_package_in() { # DISK CONFIGURATION: installed by this processor, which is quicker; how it is on the machine, its life tells
    local root=$work/root file
    cp --archive "$image/root" "$root"
    cp "$work"/../package/miaf-agent_*.deb "$root/root"
    for file in factory.pem factory.key; do cp "$work/mis/$file" "$root/root"; done
    cp "$work/mis/tls-ca.pem" "$root/root/mis-ca.pem"
    mount --types proc proc "$root/proc"
    chroot "$root" bash -c "set -e; cd; export DEBIAN_FRONTEND=noninteractive
        $(documented install)
        apt-get install --yes tpm2-tools
        $(documented configure)" >"$work/install.log"
    printf '%s\n' "$2" >"$root/etc/miaf-agent/config.d/test.toml"
    only_what_it_needs "$root"
    umount "$root/proc"
    rm "$1"
    mke2fs -q -t ext4 -d "$root" "$1" 1G >>"$work/install.log"
    rm -r "$root"
}
only_what_it_needs() { # ROOT: a machine that comes up many times, each time on an emulated processor
    chroot "$1" systemctl mask systemd-networkd.service systemd-networkd.socket dbus.service dbus.socket \
        systemd-remount-fs.service systemd-sysctl.service systemd-user-sessions.service systemd-journal-flush.service \
        systemd-initctl.socket proc-sys-fs-binfmt_misc.automount systemd-tmpfiles-clean.timer 2>/dev/null
    printf '[Journal]\nStorage=volatile\n' >"$1/etc/systemd/journald.conf"
}
plug_in() { # what systemd-networkd does in its life
    guest 'cd /sys/class/net && for card in en*; do ip address add 10.0.2.15/24 dev $card && ip link set $card up; done'
}
