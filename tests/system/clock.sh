# The wall clock of a device as it is in the field: set to another decade, set back, never set at a boot, and standing still
# while the machine sleeps. Through all of it the device stays who it is.

seconds=20 # what "at once" may take on a slow processor; an agent that looks at the clock once a minute takes longer

steps() {
    cat <<'STEPS'
a_device_with_the_package_boots_and_enrolls
fifteen_years_ahead_its_identity_has_expired_and_nothing_is_thrown_away
two_hours_back_it_waits_for_the_clock_and_serves_what_it_has
a_boot_in_1970_without_a_network_judges_nothing
a_boot_in_1970_with_a_network_does_not_hammer
told_in_1970_that_the_clock_is_right_it_gets_nothing_new
a_renewal_that_falls_due_in_suspend_is_made_at_waking
STEPS
}

a_device_with_the_package_boots_and_enrolls() {
    a_device_enrolls '' --svid-lifetime 4h # and the time of this story is long before its renewal
    nobody_sets_the_clock
    served >"$work/served"
    published >"$work/published"
    keeps_what_it_has
}

fifteen_years_ahead_its_identity_has_expired_and_nothing_is_thrown_away() {
    local requests
    requests=$(requests)
    set_clock "$(date --date '15 years' +%s)"
    at_once MIAF_STATE expired
    # It asks for another identity, and does not believe who answers: that certificate has expired as well.
    wait_for 60 "its complaint" has_error server-not-trusted
    [ "$(requests)" = "$requests" ] || fail "it has talked to an MIS whose certificate has expired"
    keeps_what_it_has
    [ "$(readiness)" = 503 ] || fail "it is ready with an identity that has expired"
    put_the_clock_right
    keeps_what_it_has
}

two_hours_back_it_waits_for_the_clock_and_serves_what_it_has() {
    local generation
    generation=$(generation)
    set_clock $(($(date +%s) - 7200))
    at_once MIAF_STATE waiting-for-clock
    [ "$(readiness)" = 503 ] || fail "it is ready, and cannot know it"
    has_error clock >/dev/null || fail "it does not say why"
    guest 'miaf-agent status' >"$work/status"
    grep -qi 'set the clock' "$work/status" && grep -q 'miaf-agent retry' "$work/status" \
        || fail "miaf-agent status does not say what to do: $(cat "$work/status")"
    keeps_what_it_has
    [ "$(generation)" = "$generation" ] || fail "it has published something"
    put_the_clock_right
    [ "$(generation)" = "$generation" ] || fail "it has published something"
    keeps_what_it_has
}

a_boot_in_1970_without_a_network_judges_nothing() {
    boot_in_1970 off
    state_is waiting-for-clock || fail "the device is $(state)"
    keeps_what_it_has
    states | expect_output waiting-for-clock
    put_the_clock_right
    network on
    plug_in
    it_is_answered
    state_is active || fail "the device is $(state)"
    states | expect_output active waiting-for-clock
    keeps_what_it_has
}

a_boot_in_1970_with_a_network_does_not_hammer() {
    local attempts requests
    boot_in_1970 on
    requests=$(requests)
    plug_in
    attempts=$(attempts)
    wait_for 60 "its complaint" journal_has 'The server is not trusted'
    sleep 30
    # Pauses of up to 5 s, then of up to the double, each drawn at random: in a whole minute it is more in one run of 10 000.
    [ $(($(attempts) - attempts)) -le 8 ] || fail "it tried $(($(attempts) - attempts)) times in a row"
    [ "$(requests)" = "$requests" ] || fail "it has talked to an MIS whose certificate is not valid yet"
    has_error clock >/dev/null || fail "it does not say what to do"
    ! journal_has 'The factory credential cannot be used' || fail "it judges the factory certificate by such a clock"
    states | expect_output waiting-for-clock
    keeps_what_it_has
}

told_in_1970_that_the_clock_is_right_it_gets_nothing_new() {
    local attempts requests
    attempts=$(attempts) requests=$(requests)
    guest 'miaf-agent retry' >/dev/null
    wait_for 60 "another attempt" more_attempts "$attempts"
    sleep 5
    [ "$(requests)" = "$requests" ] || fail "it has talked to an MIS whose certificate is not valid yet"
    [ "$(readiness)" = 503 ] || fail "it is ready with an identity that is not valid yet"
    keeps_what_it_has
    put_the_clock_right MESSAGE 'factory credential recovered'
    keeps_what_it_has
}

a_renewal_that_falls_due_in_suspend_is_made_at_waking() {
    local renewals due
    # Half a minute after it was issued.
    guest 'printf "[renewal]\nwindow = [0.0042, 0.0045]\n" >/etc/miaf-agent/config.d/test.toml && systemctl reload miaf-agent'
    wait_for 60 "the configuration to be read" journal_has 'the configuration has been read anew'
    renewals=$(answers renewal)
    guest 'miaf-agent renew' >/dev/null
    wait_for 60 "the renewal" more_answers renewal "$renewals"
    wait_for 60 "the new SVID" another_svid
    served >"$work/served"
    due=$(date --date "$(field '.identities[0].svid.renewAt')" +%s)
    renewals=$(answers renewal)
    send 0 60 'systemctl start --no-block systemd-suspend.service' # it may be asleep before it can answer
    wait_for 60 "the machine to sleep" sleeps
    [ "$(date +%s)" -lt "$due" ] || fail "it was too slow in falling asleep"
    sleep $((due + 3 - $(date +%s)))
    [ "$(answers renewal)" -eq "$renewals" ] || fail "it renews in its sleep"
    echo system_wakeup >&"$monitor"
    wait_for 60 "the renewal" more_answers renewal "$renewals"
    wait_for 60 "the new SVID" another_svid
    wait_for 60 "the state" state_is active
    is_the_same_device
    guest 'journalctl --sync; journalctl --output=json --output-fields=MESSAGE' >"$work/journal.json"
    # CLOCK_MONOTONIC stands still in suspend. What the kernel says when it falls asleep may be read after that only.
    jq --slurp --raw-output '
        def last_of(words): map(select(.MESSAGE | strings | startswith(words))) | last
            | { awake: (.__MONOTONIC_TIMESTAMP | tonumber), wall: (.__REALTIME_TIMESTAMP | tonumber) };
        last_of("admin command received") as $before | last_of("PM: suspend exit") as $exit | last_of("new SVID") as $new
        | [$exit.wall - $exit.awake - ($before.wall - $before.awake), $new.awake - $exit.awake]
        | map(. / 1e5 | round / 10 | tostring) | join(" ")' "$work/journal.json" >"$work/times"
    read -r asleep late <"$work/times"
    echo "$machine: $late s after a sleep of $asleep s the SVID is a new one"
    awk "BEGIN { exit !($asleep > 3 && $late < $seconds) }" || fail "asleep for $asleep s, and renewed $late s after that"
    [ "$(lockout_counter)" = 0x0 ] || fail "the TPM counts attacks"
    shut_down
}

nobody_sets_the_clock() {
    guest '! pidof systemd-timesyncd chronyd ntpd && test ! -e /run/systemd/timesync/synchronized' || fail "a time service runs"
}
boot_in_1970() { # on | off: the network. systemd makes it the time of its own release, which is long ago as well
    shut_down
    clock=(-rtc base=1970-01-01)
    network=$1
    boot
    [ "$(guest 'date +%s')" -lt $(($(date +%s) - 86400)) ] || fail "somebody has set the clock"
}
set_clock() { # SECONDS: since 1970
    set_at=$(guest "cut --delimiter ' ' --fields 1 /proc/uptime; date --set @$1 >&2" 2>/dev/null)
}
put_the_clock_right() { # [FIELD VALUE]: of the journal, by which it is known that the agent has noticed
    set_clock "$(date +%s)"
    at_once "${1:-MIAF_STATE}" "${2:-active}"
    wait_for 60 "the state to be seen" state_is active
    [ "$(readiness)" = 200 ] || fail "it is not ready"
}
at_once() { # FIELD VALUE: the journal has it, a few seconds after the clock was set by the times in it
    wait_for 120 "$2" since_then "$@"
    echo "$machine: $(cat "$work/since") s after the clock was set: $2"
    awk "BEGIN { exit !($(cat "$work/since") < $seconds) }" || fail "it took $(cat "$work/since") s: $2"
}
since_then() { # FIELD VALUE
    journal --output=json --output-fields="$1" | jq --slurp --exit-status --arg field "$1" --arg value "$2" --argjson since "$set_at" '
        map(select(.[$field] == $value) | (.__MONOTONIC_TIMESTAMP | tonumber) / 1e6 - $since | select(. > 0)) | min
        | select(.) * 10 | round / 10' >"$work/since"
}
states() { # that it has been in since this boot
    journal --output=json --output-fields=MIAF_STATE | jq --raw-output '.MIAF_STATE // empty' | sort --unique
}
journal_has() { journal --output=cat | grep -F -e "$1"; }

answer_of() { guest "curl --silent --max-time 30 --unix-socket /run/miaf-agent/agent.sock ${2:-} http://agent$1"; }
served() { answer_of /v1/svid | jq --exit-status --raw-output '.spiffeId, .certificateChainPem[]'; }
another_svid() { served >"$work/serves" && ! cmp "$work/serves" "$work/served"; }
readiness() { answer_of /readyz '--output /dev/null --write-out %{http_code}'; }
generation() { guest 'readlink /var/lib/miaf-agent/svid/device/current'; }
published() { guest 'cd /var/lib/miaf-agent/svid/device/current/ && sha256sum *.pem bundle.json'; }
has_error() { field '.identities[0].lastError, .lastError | .code // empty' | grep -Fx -e "$1"; } # CODE: the identity's, or a shared one
keeps_what_it_has() {
    served | cmp - "$work/served" || fail "it serves something else"
    published | cmp - "$work/published" || fail "it has published something else"
    [ "$(answers identities) $(answers renewal)" = "1 0" ] || fail "the MIS has issued something"
}

requests() { grep -c client= "$work/mis.log"; } # that the MIS has understood
attempts() { awk '/^Tcp:/ && $7 ~ /^[0-9]/ { print $7 }' /proc/net/snmp; } # connections to it, in this network of its own
more_attempts() { [ "$(attempts)" -gt "$1" ]; }
it_is_answered() { # from now on, once
    local before
    before=$(requests)
    wait_for 120 "the MIS to be asked" more_requests "$before"
}
more_requests() { [ "$(requests)" -gt "$1" ]; }
sleeps() {
    echo 'info status' >&"$monitor"
    sleep 0.5
    tail -n 2 "$work/monitor.log" | grep 'VM status: paused (suspended)'
}
