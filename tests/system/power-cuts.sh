# Fifteen power cuts, at random moments of enrolling and of renewing. After each the machine comes up as the device that
# it was, with files that belong together. Two of these stories make thirty.

cuts=15

steps() {
    cat <<'STEPS'
a_device_that_renews_every_second
STEPS
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

a_device_that_renews_every_second() {
    seed=${SEED:-$SRANDOM}
    RANDOM=$((seed % 32768))
    echo "$machine: the moments of $story are drawn with SEED=$seed"
    network=on
    # The shortest lifetime that there is: also what became of an SVID that expired while the power was off is seen.
    start_mis --svid-lifetime 60s --renewal-limit none --enrollment-limit none
    boot
    put "$(echo "$work"/../package/miaf-agent_*.deb)" "/root/$(basename "$work"/../package/miaf-agent_*.deb)"
    guest "export DEBIAN_FRONTEND=noninteractive; $(documented install); apt-get install --yes tpm2-tools" 180 >"$work/install.log"
    put "$work/mis/tls-ca.pem" /root/mis-ca.pem
    for file in factory.pem factory.key; do put "$work/mis/$file" "/root/$file"; done
    guest "$(documented configure)
        printf '[renewal]\nwindow = [0.005, 0.02]\n' >/etc/miaf-agent/config.d/often.toml
        systemctl reload miaf-agent"
    wait_for 60 "the first identity" state_is active
    field .spiffeId >"$work/identity"
    wait_for 30 "three renewals" renewed 3
    # How long an enrollment takes on this machine, from a start with nothing to the identity.
    local started=$EPOCHREALTIME
    start_over
    wait_for 60 "the identity" state_is active
    enrollment=$(awk "BEGIN { printf \"%d\", ($EPOCHREALTIME - $started) * 1000 }")
}

power_is_cut_while_it_enrolls() { # NUMBER
    start_over
    pause "$enrollment"
    cut "$1"
}
power_is_cut_as_the_MIS_answers_an_enrollment() { # NUMBER
    local before
    before=$(answers identities)
    start_over
    wait_for 60 "an enrollment" more_answers identities "$before"
    pause 200
    cut "$1"
}
power_is_cut_while_it_renews() { # NUMBER
    wait_for 60 "a renewal" renewed 1
    pause 1500
    cut "$1"
}
power_is_cut_as_the_MIS_answers_a_renewal() { # NUMBER
    wait_for 60 "a renewal" renewed 1
    pause 200
    cut "$1"
}
after_all_cuts_it_works_as_ever() {
    wait_for 60 "renewals" renewed 3
    is_the_same_device
    shut_down
}

pause() { # MILLISECONDS: so long at most, drawn at random
    sleep "$(awk "BEGIN { print $1 * $RANDOM / 32768 / 1000 }")"
}
start_over() { # the agent begins with nothing
    guest 'systemctl stop miaf-agent.service && find /var/lib/miaf-agent -mindepth 1 -delete && sync
        systemctl start --no-block miaf-agent'
}
answers() { # KIND: how many the MIS has given so far
    grep -c "POST .*/$1 -> 20" "$work/mis.log" || true
}
more_answers() { # KIND NUMBER
    [ "$(answers "$1")" -gt "$2" ]
}
renewed() { # TIMES: from now on; a wait of its own
    local before
    before=$(answers renewal)
    wait_for 60 "a renewal" more_answers renewal $((before + $1 - 1))
}

cut() { # NUMBER: and what there is when the power is back
    power_cut
    power_on
    wait_for 60 "the identity" state_is active
    is_the_same_device
    [ "$(lockout_counter)" = 0x0 ] || fail "the TPM counts attacks"
    guest 'tar --create --directory /var/lib/miaf-agent .' >"$work/cut.tar"
    rm -rf "$work/cut"
    mkdir "$work/cut"
    tar --extract --file "$work/cut.tar" --directory "$work/cut"
    what_is_published_belongs_together
    nothing_is_left_over
}
what_is_published_belongs_together() {
    cd "$work/cut/svid/current"
    # The public key of the certificate, its two coordinates, in the form that the TPM has it.
    local point
    point=$(openssl x509 -in svid.pem -noout -pubkey | openssl pkey -pubin -outform der | tail --bytes 64 | od -An -v -t x1 | tr -d ' \n')
    sed '/^-/d' key.pem | base64 --decode | od -An -v -t x1 | tr -d ' \n' | grep -q "0020${point:0:64}0020${point:64}" \
        || fail "key.pem is not the key of svid.pem"
    cat svid.pem key.pem | cmp - svid-with-key.pem || fail "svid-with-key.pem is of another generation"
    # A renewal a second, and a minute to live: it may have ended since.
    openssl verify -no_check_time -CAfile bundle.pem -untrusted svid.pem svid.pem >/dev/null || fail "bundle.pem does not vouch for svid.pem"
    openssl x509 -in svid.pem -noout -serial | tr -d : | grep -qi "$(jq --raw-output '.serial' identity.json | tr -d :)" \
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
    left=$(cd "$work/cut/svid" && find . -mindepth 1 -maxdepth 1 -type d ! -name '.*' | wc -l)
    [ "$left" -le 3 ] || fail "$left generations are kept"
}
