# Ten power cuts, at random moments of enrolling and of renewing. After each the machine comes up as the device that
# it was, with files that belong together. Three of these stories make thirty; one of them is told on a disk that loses what
# was not flushed (machine/qemu-lossy.sh).

cuts=10

steps() {
    cat <<'STEPS'
a_device_with_the_package_boots_and_enrolls
it_renews_every_few_seconds
STEPS
    [ "$machine" != qemu-lossy ] || echo the_disk_loses_what_was_not_flushed_and_nothing_else
    local cut
    for cut in $(seq 1 $cuts); do
        case $((cut % 4)) in
        1) echo "power_is_cut_while_it_enrolls $cut" ;;
        2) echo "power_is_cut_while_it_renews $cut" ;;
        3) echo "power_is_cut_as_the_MIS_answers_an_enrollment $cut" ;;
        0) echo "power_is_cut_as_the_MIS_answers_a_renewal $cut" ;;
        esac
    done
    echo after_all_cuts_it_works_as_ever
}

a_device_with_the_package_boots_and_enrolls() {
    seed=${SEED:-$SRANDOM}
    RANDOM=$((seed % 32768))
    echo "$machine: the moments of $story are drawn with SEED=$seed"
    # The pause between two renewals is then the shortest that the agent makes, five seconds.
    a_device_enrolls '[renewal]
window = [0.0005, 0.002]' --svid-lifetime 10m --renewal-limit none --enrollment-limit none
}

it_renews_every_few_seconds() {
    renewed 3
    # How long an enrollment takes here, from a start with nothing to the identity.
    local started
    start_over
    started=$EPOCHREALTIME
    wait_for 120 "the identity" state_is active
    enrollment=$(awk "BEGIN { printf \"%d\", ($EPOCHREALTIME - $started) * 1000 }")
}

# Without this, the power cuts on that disk would prove no more than those on the other.
the_disk_loses_what_was_not_flushed_and_nothing_else() {
    guest 'cat /sys/block/vda/queue/write_cache' | expect_output 'write back'
    # A file that is synced, and its directory; one that only has its name; and blocks that are on the disk at once, but of
    # which nobody asks that they stay there. The file system has no time to do so on its own account.
    guest 'set -e
        systemctl stop miaf-agent.service 2>/dev/null
        mount -o remount,commit=300 /
        dd if=/dev/zero of=blocks bs=4k count=100 status=none
        sync
        echo content >synced
        sync synced .
        echo content >renamed.new
        mv renamed.new renamed
        head --bytes 400k /dev/zero | tr "\0" x | dd of=blocks bs=4k iflag=fullblock oflag=direct conv=notrunc status=none'
    power_cut_at_once
    power_on
    plug_in
    guest 'cat synced' | expect_output content
    guest '! test -s renamed' || fail "a file is there that was not synced"
    guest 'tr --delete "\0" <blocks | wc --bytes' >"$work/blocks"
    [ "$(cat "$work/blocks")" -lt 409600 ] || fail "the disk has lost nothing"
    wait_for 120 "the identity" state_is active
    is_the_same_device
}

power_is_cut_while_it_enrolls() { # NUMBER
    start_over
    pause 0 "$enrollment"
    cut "$1"
}
power_is_cut_as_the_MIS_answers_an_enrollment() { # NUMBER
    local before
    before=$(answers identities)
    start_over
    poll=0.01 wait_for 120 "an enrollment" more_answers identities "$before"
    pause 0 400
    cut "$1"
}
power_is_cut_while_it_renews() { # NUMBER
    renewed 1
    pause 4700 5900
    cut "$1"
    no_new_enrollment
}
power_is_cut_as_the_MIS_answers_a_renewal() { # NUMBER
    renewed 1
    pause 0 400
    cut "$1"
    no_new_enrollment
}
after_all_cuts_it_works_as_ever() {
    renewed 3
    is_the_same_device
    shut_down
    e2fsck -f -n "$work/disk.img" >"$work/e2fsck.log" 2>&1 || fail "the file system is damaged: $(cat "$work/e2fsck.log")"
}

pause() { # FROM TO: milliseconds, drawn at random
    sleep "$(awk "BEGIN { print ($1 + ($2 - $1) * $RANDOM / 32768) / 1000 }")"
}
start_over() { # the agent begins with nothing
    guest 'systemctl stop miaf-agent.service && find /var/lib/miaf-agent -mindepth 1 -delete && sync
        systemctl start --no-block miaf-agent' 2>/dev/null # which warns of the sockets
}
renewed() { # TIMES: waits for so many renewals from now on
    local before
    before=$(answers renewal)
    enrollments=$(answers identities)
    poll=0.01 wait_for 120 "renewals" more_answers renewal $((before + $1 - 1))
}
no_new_enrollment() { # since it renewed
    [ "$(answers identities)" -eq "$enrollments" ] || fail "it has lost its identity, and enrolled again"
}

cut() { # NUMBER: and what there is when the power is back
    power_cut
    power_on
    plug_in
    wait_for 120 "the identity" state_is active
    is_the_same_device
    [ "$(lockout_counter)" = 0x0 ] || fail "the TPM counts attacks"
    # It must not be renewing while it is looked at.
    guest 'systemctl stop miaf-agent.service' 2>/dev/null
    guest 'tar --create --directory /var/lib/miaf-agent .' >"$work/cut.tar"
    guest 'systemctl start --no-block miaf-agent.service'
    rm -rf "$work/cut"
    mkdir "$work/cut"
    tar --extract --file "$work/cut.tar" --directory "$work/cut"
    what_is_published_belongs_together
    nothing_is_left_over
    the_file_system_kept_what_was_synced "$1"
}
what_is_published_belongs_together() {
    cd "$work/cut/svid/device/current"
    # The public key of the certificate, its two coordinates, in the form that the TPM has it.
    local point
    point=$(openssl x509 -in svid.pem -noout -pubkey | openssl pkey -pubin -outform der | tail --bytes 64 | od -An -v -t x1 | tr -d ' \n')
    sed '/^-/d' key.pem | base64 --decode | od -An -v -t x1 | tr -d ' \n' | grep "0020${point:0:64}0020${point:64}" >/dev/null \
        || fail "key.pem is not the key of svid.pem"
    cat svid.pem key.pem | cmp - svid-with-key.pem || fail "svid-with-key.pem is of another generation"
    openssl verify -CAfile bundle.pem -untrusted svid.pem svid.pem >/dev/null || fail "bundle.pem does not vouch for svid.pem"
    openssl x509 -in svid.pem -noout -serial | tr -d : | grep -i "$(jq --raw-output '.serial' identity.json | tr -d :)" >/dev/null \
        || fail "identity.json is of another generation"
    cd - >/dev/null
}
nothing_is_left_over() {
    local left
    left=$(cd "$work/cut" && find . -name '*unusable*')
    [ -z "$left" ] || fail "a part of the state could not be used: $left"
    # Half-written files are replaced by the next that has their name: there is never more than one for each.
    left=$(cd "$work/cut" && find . -name '*.new' | wc -l)
    [ "$left" -le 3 ] || fail "half-written files pile up: $(cd "$work/cut" && find . -name '*.new')"
    left=$(cd "$work/cut/svid/device" && find . -mindepth 1 -maxdepth 1 -type d ! -name '.*' | wc -l)
    [ "$left" -le 3 ] || fail "$left generations are kept"
}
the_file_system_kept_what_was_synced() { # NUMBER: a file and its directory, after every cut before this one
    guest 'dmesg' >"$work/kernel.log"
    grep -q 'EXT4-fs.*: recovery complete' "$work/kernel.log" || fail "the file system was not cut off"
    ! grep -E 'EXT4-fs (error|warning)' "$work/kernel.log" >&2 || fail "the file system is damaged"
    guest 'find . -name "synced-*" -exec cat {} + | sort --numeric-sort' >"$work/synced"
    seq 1 $(($1 - 1)) | diff - "$work/synced" >&2 || fail "a file that was synced is lost"
    guest "echo $1 >synced-$1 && sync synced-$1 ."
}
