# The life of the package on a device, from installation to purge. Each step goes on from where the one before left off.

steps() {
    cat <<'STEPS'
a_new_machine_boots
the_package_is_installed_with_no_network
the_agent_runs_and_says_that_it_is_unconfigured
an_unconfigured_agent_costs_nothing
it_delays_no_boot
configured_by_the_documentation_it_enrolls
the_factory_key_is_for_the_agent_alone
the_files_have_their_owners_and_modes
the_journal_has_its_fields
the_other_commands_of_the_documentation_work
one_socket_a_right_and_one_group_a_socket
the_uid_of_a_caller_arrives
who_may_sign_gets_a_signature_and_is_on_record
the_workload_api_gives_bundles_to_all_and_the_key_in_the_tpm_to_nobody
admin_commands_are_root_s_and_on_record
the_key_is_in_the_tpm_of_this_machine
the_agent_has_no_right_that_it_does_not_need
the_helper_for_a_late_tpm_needs_few_rights_and_starts_the_agent_only_where_it_has_none
an_encrypted_kek_reaches_the_agent
a_rotation_reloads_a_service
a_rotation_restarts_what_the_configuration_names_once
a_second_identity_is_enrolled_by_hand_and_its_program_restarted
removed_from_the_configuration_it_is_retired_and_the_device_goes_on
a_device_without_state_enrolls_at_boot_as_the_same
after_a_reboot_it_is_served_before_any_network
killed_it_comes_back_and_who_asks_meanwhile_is_answered
hanging_it_is_ended_by_the_watchdog
a_broken_configuration_ends_nothing_for_good
who_asks_during_a_restart_is_answered
STEPS
    if [ "$machine" = qemu ]; then
        cat <<'STEPS'
a_tpm_that_appears_late_is_used
the_tests_for_real_chips_pass_on_this_one
STEPS
    fi
    cat <<'STEPS'
an_upgrade_keeps_identity_and_configuration
removed_it_leaves_its_state
purged_it_leaves_nothing_of_its_own
STEPS
}

a_new_machine_boots() {
    start_mis
    network=off
    boot
    guest 'test "$(systemctl is-system-running)" = running' || fail "not all is well before the agent is installed"
}

the_package_is_installed_with_no_network() {
    put "$(echo "$work"/../package/miaf-agent_*.deb)" "/root/$(basename "$work"/../package/miaf-agent_*.deb)"
    guest '! ldconfig --print-cache | grep libtss2' || fail "the image has what the package depends on"
    guest "export DEBIAN_FRONTEND=noninteractive; $(documented install)" 300 >"$work/install.log"
    tpm_has_its_group
    guest 'dpkg --verify miaf-agent && apt-get check --quiet' >/dev/null
}

the_agent_runs_and_says_that_it_is_unconfigured() {
    local unit
    for unit in miaf-agent.service miaf-agent.socket miaf-agent-sign.socket miaf-agent-admin.socket; do
        guest "systemctl is-enabled $unit && systemctl is-active $unit" >/dev/null || fail "$unit is not enabled and active"
    done
    guest 'miaf-agent status' | grep '^State *unconfigured' >/dev/null || fail "miaf-agent status does not say so"
    guest 'systemctl status miaf-agent' | grep 'Status: "unconfigured' >/dev/null || fail "systemctl status does not say so"
    journal --output=cat | grep 'no MIS is configured' >/dev/null || fail "the journal does not say so"
    # The credential that this device does not have is nothing to report.
    if journal --output=cat | grep -i -e credential -e '\bkek\b'; then fail "the journal has a line about a missing credential"; fi
}

an_unconfigured_agent_costs_nothing() {
    local before after
    before=$(guest "$(cost)")
    sleep 5
    after=$(guest "$(cost)")
    read -r time_before switches_before <<<"$before"
    read -r time_after switches_after <<<"$after"
    [ $((time_after - time_before)) -le 1 ] || fail "it used $((time_after - time_before)) hundredths of a second in 5 s"
    [ $((switches_after - switches_before)) -le 5 ] || fail "it woke up $((switches_after - switches_before)) times in 5 s"
}
cost() { # processor time (ticks) and wake-ups of all threads so far
    cat <<'SHELL'
pid=$(systemctl show --property MainPID --value miaf-agent)
time=$(sed 's/.*) //' /proc/$pid/stat | cut -d ' ' -f 12,13 | tr ' ' +)
echo $((time)) $(($(sed -n 's/^voluntary_ctxt_switches:/+/p' /proc/$pid/task/*/status)))
SHELL
}

it_delays_no_boot() {
    local took
    shut_down
    boot # with no network, and nothing configured
    guest 'systemctl is-active miaf-agent' >/dev/null || fail "the agent is not up with the machine"
    # Whatever waits for a network that is not there takes longer than this, on the slowest of processors.
    took=$(guest 'systemctl show --property ActiveEnterTimestampMonotonic,InactiveExitTimestampMonotonic miaf-agent' \
        | awk -F = '{ time[$1] = $2 }
            END { print int((time["ActiveEnterTimestampMonotonic"] - time["InactiveExitTimestampMonotonic"]) / 1000) }')
    [ "$took" -le 15000 ] || fail "the agent took $took ms until it was ready"
    # Nothing waits for it but the end of the boot (and its own helper, where udev has loaded it), and it waits for nothing
    # that may not come.
    guest 'systemctl show --property Before --value miaf-agent' | tr ' ' '\n' | grep -v '^miaf-agent-tpm.service$' | sort \
        | expect_output multi-user.target shutdown.target
    guest 'systemctl show --property After --value miaf-agent' >"$work/order.log"
    if grep -E 'network|time-sync|nss-lookup' "$work/order.log"; then fail "it waits for these: $(cat "$work/order.log")"; fi
}

configured_by_the_documentation_it_enrolls() {
    local file
    put "$work/mis/tls-ca.pem" /root/mis-ca.pem
    for file in factory.pem factory.key; do put "$work/mis/$file" "/root/$file"; done
    network on
    guest "$(documented configure)"
    wait_for 120 "the first identity" state_is active
    field '.identities[0].spiffeId' >"$work/identity"
    grep -q '^spiffe://factory.example/margo/device/' "$work/identity" || fail "not a device: $(cat "$work/identity")"
    [ "$(field '.identities[0].key.protection')" = hardware ] || fail "the key is not in the TPM"
    guest 'test "$(curl --silent --unix-socket /run/miaf-agent/agent.sock http://agent/readyz)" = "{\"ready\":true}"'
}

the_factory_key_is_for_the_agent_alone() {
    guest 'stat --format "%a %U %G" /etc/miaf-agent/factory.key' | expect_output '640 root miaf-agent'
    guest 'runuser -u miaf-agent -- test -r /etc/miaf-agent/factory.key' || fail "the agent cannot read it"
    guest '! runuser -u nobody -- test -r /etc/miaf-agent/factory.key' || fail "others can read it"
}

the_files_have_their_owners_and_modes() {
    guest 'cd /var/lib/miaf-agent && stat --format "%A %U %G %n" . private svid svid/device svid/device/current' | expect_output \
        'drwx--x--x miaf-agent miaf-agent .' \
        'drwx------ miaf-agent miaf-agent private' \
        'drwxr-x--- miaf-agent miaf svid' \
        'drwxr-x--- miaf-agent miaf svid/device' \
        'lrwxrwxrwx miaf-agent miaf-agent svid/device/current'
    guest 'cd /var/lib/miaf-agent/svid/device/current/ && stat --format "%A %U %G %n" . *' | expect_output \
        'drwxr-x--- miaf-agent miaf .' \
        '-rw-r----- miaf-agent miaf bundle.json' \
        '-rw-r----- miaf-agent miaf bundle.pem' \
        '-rw-r----- miaf-agent miaf identity.json' \
        '-rw-r----- miaf-agent miaf-sign key.pem' \
        '-rw-r----- miaf-agent miaf-sign svid-with-key.pem' \
        '-rw-r----- miaf-agent miaf svid.pem'
    guest 'cd /var/lib/miaf-agent/private && find . ! -perm /077' | grep identity.json >/dev/null
    guest 'find /var/lib/miaf-agent/private -perm /077' | expect_output
    guest 'stat --format "%A %U %G %n" /run/miaf-agent /run/miaf-agent/*' | expect_output \
        'drwxr-xr-x root root /run/miaf-agent' \
        'srw------- root root /run/miaf-agent/admin.sock' \
        'srw-rw---- root miaf /run/miaf-agent/agent.sock' \
        'drwxr-xr-x miaf-agent miaf-agent /run/miaf-agent/keys' \
        'srw-rw---- root miaf-sign /run/miaf-agent/sign.sock'
}

the_journal_has_its_fields() {
    journal --output=json >"$work/journal.json"
    # An SVID is news (tracing's info is the journal's notice), and everything in it can be filtered by.
    jq --exit-status --slurp --arg id "$(cat "$work/identity")" 'any(.[]; .MESSAGE == "new SVID" and .MIAF_SPIFFE_ID == $id
        and .MIAF_IDENTITY == "device" and .MIAF_SERIAL != null and .MIAF_KEY_PROTECTION == "hardware" and .PRIORITY == "5"
        and ._SYSTEMD_UNIT == "miaf-agent.service" and .SYSLOG_IDENTIFIER == "miaf-agent")' "$work/journal.json" >/dev/null \
        || fail "no entry of a new SVID with its fields"
    jq --exit-status --slurp 'any(.[]; .MIAF_STATE == "active" and .MIAF_IDENTITY == "device")' "$work/journal.json" >/dev/null \
        || fail "no entry of the state with its fields"
}

the_other_commands_of_the_documentation_work() {
    guest 'useradd wfm-client && useradd signer --groups miaf,miaf-sign,tss && useradd stranger'
    guest "set -e; $(documented)" >/dev/null
    guest 'id --groups --name wfm-client' | expect_output 'wfm-client miaf'
}

one_socket_a_right_and_one_group_a_socket() {
    guest "$(cat <<'SHELL'
for user in wfm-client signer stranger miaf-agent root; do
    for socket in agent sign admin; do
        runuser -u $user -- curl --silent --fail --unix-socket /run/miaf-agent/$socket.sock http://agent/v1/status >/dev/null
        case $? in 0) word=yes ;; 7) word=no ;; *) word=error ;; esac
        printf '%s %s %s\n' $user $socket $word
    done
    for file in svid.pem key.pem; do
        runuser -u $user -- test -r /var/lib/miaf-agent/svid/device/current/$file && word=yes || word=no
        printf '%s %s %s\n' $user $file $word
    done
done
SHELL
    )" | paste -d , - - - - - | sed 's/,[^ ]* / /g; s/ \([^ ]*\) yes/ \1/g' >"$work/rights"
    expect_output <"$work/rights" \
        'wfm-client agent sign no admin no svid.pem key.pem no' \
        'signer agent sign admin no svid.pem key.pem' \
        'stranger agent no sign no admin no svid.pem no key.pem no' \
        'miaf-agent agent sign admin no svid.pem key.pem' \
        'root agent sign admin svid.pem key.pem'
    # And what nobody may do, whoever it is: look into the private part.
    guest '! runuser -u signer -- ls /var/lib/miaf-agent/private 2>/dev/null' || fail "others see what is private"
    guest '! runuser -u stranger -- miaf-agent status 2>&1' | grep 'Become a member of the group' >/dev/null \
        || fail "a stranger is not told what to do"
}

the_uid_of_a_caller_arrives() {
    guest "set -e
        printf '[log]\nlevel = \"debug\"\n' >/etc/miaf-agent/config.d/log.toml
        systemctl restart miaf-agent
        runuser -u wfm-client -- curl --silent --unix-socket /run/miaf-agent/agent.sock http://agent/v1/svid >/dev/null
        rm /etc/miaf-agent/config.d/log.toml"
    journal --output=json MIAF_PATH=/v1/svid >"$work/journal.json"
    jq --exit-status --slurp --arg uid "$(guest 'id --user wfm-client')" \
        'any(.[]; .MIAF_UID == $uid and (.MIAF_PID | tonumber) > 1 and .MIAF_ROLE == "agent" and .PRIORITY == "6")' \
        "$work/journal.json" >/dev/null || fail "the agent did not see who asked: $(cat "$work/journal.json")"
    guest 'systemctl restart miaf-agent'
}

who_may_sign_gets_a_signature_and_is_on_record() {
    guest 'apt-get install --yes --quiet openssl' 300 >/dev/null
    # Made by the key in the TPM for somebody who cannot reach the TPM, and right by the certificate.
    guest "$(cat <<'SHELL'
set -e
gpasswd --delete signer tss >/dev/null
cd /tmp && echo message >message
runuser -u signer -- curl --silent --fail --unix-socket /run/miaf-agent/sign.sock --data \
    "{\"algorithm\": \"ES256\", \"digest\": \"$(openssl dgst -sha256 -binary message | base64)\"}" http://agent/v1/sign >signed.json
sed 's/.*"signature":"\([^"]*\)".*/\1/' signed.json | base64 --decode >signature
openssl x509 -in /var/lib/miaf-agent/svid/device/current/svid.pem -noout -pubkey >public.pem
openssl dgst -sha256 -verify public.pem -signature signature message
usermod --append --groups tss signer
SHELL
    )" | expect_output 'Verified OK'
    journal --output=json MIAF_AUDIT=sign >"$work/journal.json"
    jq --exit-status --slurp --arg uid "$(guest 'id --user signer')" --arg id "$(cat "$work/identity")" \
        'any(.[]; .MIAF_UID == $uid and (.MIAF_PID | tonumber) > 1 and .MIAF_IDENTITY == "device" and .MIAF_SPIFFE_ID == $id
            and .MIAF_SERIAL != null)' \
        "$work/journal.json" >/dev/null || fail "who had the key sign is not on record: $(cat "$work/journal.json")"
    # The socket for reading makes no signature, not even for root.
    guest 'curl --silent --unix-socket /run/miaf-agent/agent.sock --data "{}" http://agent/v1/sign' | grep '"status":403' >/dev/null
    guest 'sed -n "s/  */ /g; /^Max open files/p" /proc/$(systemctl show --property MainPID --value miaf-agent)/limits' \
        | expect_output 'Max open files 16384 16384 files '
}

the_workload_api_gives_bundles_to_all_and_the_key_in_the_tpm_to_nobody() {
    guest "$(workload_call wfm-client FetchX509Bundles)" >"$work/bundles"
    tr --delete '\0' <"$work/bundles" | grep --text -F 'spiffe://factory.example' >/dev/null || fail "there is no bundle: $(cat "$work/bundles")"
    for user in wfm-client root; do
        guest "$(workload_call $user FetchX509SVID)" >"$work/svid"
        grep --text -i '^grpc-status: 7' "$work/svid" >/dev/null || fail "$user is not refused: $(cat "$work/svid")"
        grep --text -i '^grpc-message: .*TPM' "$work/svid" >/dev/null || fail "$user is not told why"
    done
    ! guest "$(workload_call stranger FetchX509Bundles)" >/dev/null 2>&1 || fail "a stranger may ask"
    journal --output=json MIAF_AUDIT=key >"$work/journal.json"
    jq --exit-status --slurp --arg uid "$(guest 'id --user wfm-client')" \
        'any(.[]; .MIAF_UID == $uid and .MIAF_IDENTITY == "device" and .MIAF_REASON != null)' \
        "$work/journal.json" >/dev/null || fail "that the key was refused is not on record"
}
workload_call() { # USER METHOD: an empty message, and what comes back within two seconds of a stream without an end
    echo "printf '\0\0\0\0\0' | runuser -u $1 -- curl --silent --include --no-buffer --max-time 2 --http2-prior-knowledge \
        --unix-socket /run/miaf-agent/agent.sock --header 'content-type: application/grpc' --header 'workload.spiffe.io: true' \
        --header 'te: trailers' --data-binary @- http://agent/SpiffeWorkloadAPI/$2 || [ \$? -eq 28 ]"
}

admin_commands_are_root_s_and_on_record() {
    guest '! runuser -u signer -- miaf-agent retry 2>&1' | grep 'only root may' >/dev/null || fail "another user sends admin commands"
    guest 'miaf-agent retry' >/dev/null
    journal --output=json MIAF_AUDIT=retry >"$work/journal.json"
    jq --exit-status --slurp 'any(.[]; .MIAF_UID == "0" and (.MIAF_PID | tonumber) > 1)' "$work/journal.json" >/dev/null \
        || fail "the admin command is not on record"
}

the_key_is_in_the_tpm_of_this_machine() {
    guest 'apt-get install --yes --quiet tpm2-tools tpm2-openssl openssl' 300 >/dev/null
    # A signature by the published key, made by somebody who may use it, fits the certificate.
    guest "$(cat <<'SHELL'
set -e
cd /var/lib/miaf-agent/svid/device/current/
export TPM2OPENSSL_TCTI=device:/dev/tpmrm0
echo message >/tmp/message
runuser -u signer -- openssl pkeyutl -provider tpm2 -provider default -sign -rawin -digest sha256 -inkey key.pem \
    -in /tmp/message >/tmp/signature
openssl x509 -in svid.pem -noout -pubkey >/tmp/public.pem
openssl pkeyutl -verify -rawin -digest sha256 -pubin -inkey /tmp/public.pem -in /tmp/message -sigfile /tmp/signature
SHELL
    )" | grep 'Signature Verified Successfully' >/dev/null || fail "key.pem and svid.pem do not fit"
    # The TPM of another machine can do nothing with it (0x1df, TPM_RC_INTEGRITY: it is not sealed for that one).
    local published=/var/lib/miaf-agent/svid/device/current
    guest "cat $published/key.pem" >"$work/key.pem"
    grep -q 'BEGIN TSS2 PRIVATE KEY' "$work/key.pem"
    other_tpm
    sign_here >/dev/null 2>"$work/sign.log" && fail "another TPM signed with the key of this machine"
    grep -q '0x000001df' "$work/sign.log" || fail "the other TPM refused for another reason: $(cat "$work/sign.log")"
    stop_other_tpm
    [ "$(lockout_counter)" = 0x0 ] || fail "the TPM counts attacks"
}

the_agent_has_no_right_that_it_does_not_need() {
    guest 'cat /proc/$(systemctl show --property MainPID --value miaf-agent)/status' >"$work/status"
    local uid
    uid=$(guest 'id --user miaf-agent')
    awk '/^(Uid|Cap|NoNewPrivs|Seccomp:)/ { $1 = $1; print }' "$work/status" | expect_output \
        "Uid: $uid $uid $uid $uid" \
        'CapInh: 0000000000000000' 'CapPrm: 0000000000000000' 'CapEff: 0000000000000000' \
        'CapBnd: 0000000000000000' 'CapAmb: 0000000000000000' 'NoNewPrivs: 1' 'Seccomp: 2'
    guest 'sed -n "s/  */ /g; /^Max core/p" /proc/$(systemctl show --property MainPID --value miaf-agent)/limits' \
        | expect_output 'Max core file size 0 0 bytes '
    # The kernel shows a process whose memory is private as root's.
    guest 'stat --format %U /proc/$(systemctl show --property MainPID --value miaf-agent)/environ' | expect_output root
    guest 'tr "\0" "\n" </proc/$(systemctl show --property MainPID --value miaf-agent)/environ | grep --line-regexp --fixed-strings \
        "MIAF_BOOT_ID=$(tr -d - </proc/sys/kernel/random/boot_id)"' >/dev/null || fail "the agent does not know this boot"
    guest 'systemctl show --property ProtectSystem,PrivateDevices,User miaf-agent' | sort | expect_output \
        'PrivateDevices=yes' 'ProtectSystem=strict' 'User=miaf-agent'
    guest 'systemd-analyze security --no-pager miaf-agent' >"$work/security.log"
    awk '/Overall exposure level/ { exit !($(NF - 2) <= 1.3) }' "$work/security.log" \
        || fail "$(grep 'Overall exposure' "$work/security.log")"
    # It writes where a software key is published, and not beside the sockets.
    guest 'agent="nsenter --target $(systemctl show --property MainPID --value miaf-agent) --mount runuser -u miaf-agent --"
        $agent touch /run/miaf-agent/keys/new && rm /run/miaf-agent/keys/new && ! $agent touch /run/miaf-agent/new' 2>/dev/null \
        || fail "/run/miaf-agent is not as it should be for the agent"
}

the_helper_for_a_late_tpm_needs_few_rights_and_starts_the_agent_only_where_it_has_none() {
    local pid
    pid=$(main_pid)
    guest 'systemd-analyze security --no-pager miaf-agent-tpm' >"$work/security.log"
    awk '/Overall exposure level/ { exit !($(NF - 2) <= 1.0) }' "$work/security.log" \
        || fail "$(grep 'Overall exposure' "$work/security.log")"
    guest 'systemctl start miaf-agent-tpm && journalctl --unit miaf-agent-tpm --output cat' | grep exec-condition >/dev/null \
        || fail "it was not skipped by its condition"
    [ "$(main_pid)" = "$pid" ] || fail "the agent has its TPM and was started again"
    guest 'nsenter --target $(systemctl show --property MainPID --value miaf-agent) --mount mount --bind /dev/null /dev/tpmrm0
        systemctl start miaf-agent-tpm'
    wait_for 60 "another start of the agent" other_pid_than "$pid"
    wait_for 60 "the identity" state_is active
}

an_encrypted_kek_reaches_the_agent() {
    # The default of the unit, until there is one; and never in the place of one that cannot be decrypted.
    guest "$(credential)" | expect_output none
    guest 'mkdir -p /etc/credstore.encrypted
        printf %032d 7 | systemd-creds encrypt --with-key=host --name=kek - /etc/credstore.encrypted/kek
        systemctl restart miaf-agent' 2>/dev/null
    guest "$(credential)" | expect_output "$(printf %032d 7)"
    guest 'echo damaged | base64 >/etc/credstore.encrypted/kek; ! systemctl restart miaf-agent' 2>/dev/null \
        || fail "the agent was started without the credential"
    guest 'rm -r /etc/credstore.encrypted; systemctl restart miaf-agent'
    guest "$(credential)" | expect_output none
    state_is active || fail "the device is $(state)"
}
credential() { # as the agent has it; the directory is the agent's alone
    echo 'nsenter --target $(systemctl show --property MainPID --value miaf-agent) --mount -- cat /run/credentials/miaf-agent.service/kek; echo'
}

a_rotation_reloads_a_service() {
    # In the place of nginx, one that notes which identity there was when it was reloaded.
    guest "$(cat <<'SHELL'
cat >/run/systemd/system/nginx.service <<'END'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=true
ExecReload=sh -c 'readlink /var/lib/miaf-agent/svid/device/current >>/run/reloaded'
END
systemctl daemon-reload && systemctl start nginx
SHELL
    )"
    guest "set -e; $(documented rotation using-the-identity.md)" 2>/dev/null
    guest 'readlink /var/lib/miaf-agent/svid/device/current >/run/had && miaf-agent renew' >/dev/null
    wait_for 60 "the service to be reloaded with the new identity" guest \
        'new=$(readlink /var/lib/miaf-agent/svid/device/current); [ "$new" != "$(cat /run/had)" ] && [ "$(tail -n 1 /run/reloaded)" = "$new" ]'
    guest 'systemctl disable --now reload-on-rotation@nginx.path
        systemctl stop nginx
        rm /etc/systemd/system/reload-on-rotation@.* /run/systemd/system/nginx.service /run/had /run/reloaded
        systemctl daemon-reload' 2>/dev/null
}

a_rotation_restarts_what_the_configuration_names_once() {
    guest "$(cat <<'SHELL'
cat >/run/systemd/system/my-client.service <<'END'
[Service]
ExecStart=sh -c 'readlink /var/lib/miaf-agent/svid/device/current >>/run/started; exec sleep infinity'
END
cat >/run/systemd/system/not-running.service <<'END'
[Service]
ExecStart=sh -c 'touch /run/was-not-running; exec sleep infinity'
END
systemctl daemon-reload && systemctl start my-client
SHELL
    )"
    documented_as toml notify using-the-identity.md >"$work/notify.toml"
    put "$work/notify.toml" /etc/miaf-agent/config.d/notify.toml
    guest "set -e; $(documented notify using-the-identity.md)" 2>/dev/null
    guest 'readlink /var/lib/miaf-agent/svid/device/current >/run/had && miaf-agent renew' >/dev/null
    wait_for 60 "the service to be restarted with the new identity" guest \
        'new=$(readlink /var/lib/miaf-agent/svid/device/current); [ "$new" != "$(cat /run/had)" ] && [ "$(tail -n 1 /run/started)" = "$new" ]'
    # Once for each generation, and not once for each file of it.
    guest 'sort /run/started | uniq --repeated' | expect_output
    # A unit that does not run is not started.
    guest 'sed -i s/my-client/not-running/ /etc/miaf-agent/config.d/notify.toml && systemctl reload miaf-agent && miaf-agent notify --identity device'
    guest '! test -e /run/was-not-running'
    guest 'systemctl disable --now miaf-agent-notify@device.path
        systemctl stop my-client
        rm /etc/miaf-agent/config.d/notify.toml
        rm /run/systemd/system/my-client.service /run/systemd/system/not-running.service /run/had /run/started
        systemctl daemon-reload && systemctl reload miaf-agent' 2>/dev/null
}

a_second_identity_is_enrolled_by_hand_and_its_program_restarted() {
    local serial
    serial=$(field '.identities[0].svid.serial')
    # The authority of the trust domain, by plain openssl, with the configuration of the documentation.
    put "$work/mis/trust-domain/root-1.pem" /etc/miaf-agent/ca.pem
    put "$work/mis/trust-domain/root-1.key" /etc/miaf-agent/ca.key
    documented_as ini ca.cnf identities.md >"$work/ca.cnf"
    put "$work/ca.cnf" /etc/miaf-agent/ca.cnf
    guest "$(cat <<'SHELL'
cd /etc/miaf-agent && mkdir issued && touch index.txt
cat >config.d/wfm-client.toml <<'END'
[[identity]]
name = "device"
enroll = "factory-cert"

[[identity]]
name = "wfm-client"
enroll = "manual"
key.provider = "software"
notify = "wfm-client.service"
END
cat >/run/systemd/system/wfm-client.service <<'END'
[Service]
ExecStart=sh -c 'readlink /run/miaf-agent/keys/wfm-client/current >>/run/started; exec sleep infinity'
END
printf '[files]\nsoftware_key_dir = "/run/miaf-agent/keys"\n' >config.d/keys.toml
systemctl daemon-reload
systemctl start wfm-client && systemctl enable --now miaf-agent-notify@wfm-client.path
SHELL
    )" 2>/dev/null
    # As the documentation says, from the reload to the SVID.
    guest "set -e; cd /etc/miaf-agent; $(documented csr identities.md)"
    client_is waiting-for-operator || fail "the client is $(client .state)"
    guest "set -e; cd /etc/miaf-agent; $(documented sign identities.md)" 2>/dev/null
    guest "set -e; cd /etc/miaf-agent; $(documented install identities.md)" >/dev/null
    client_is active || fail "the client is $(client .state)"
    [ "$(client .spiffeId)" = spiffe://factory.example/margo/wfm/wfm-1/client/line-7 ] || fail "it is $(client .spiffeId)"
    guest 'cat /var/lib/miaf-agent/svid/wfm-client/authorized.json; echo' \
        | expect_output '["spiffe://factory.example/margo/wfm/wfm-1"]'
    guest 'cd /run/miaf-agent/keys/wfm-client/current/ && head -n 1 svid.pem key.pem && stat --format "%A %U %G %n" key.pem' | expect_output \
        '==> svid.pem <==' '-----BEGIN CERTIFICATE-----' '' '==> key.pem <==' '-----BEGIN PRIVATE KEY-----' \
        '-rw-r----- miaf-agent miaf-sign key.pem'
    # The program that only reads its files at its start has been started again, with them.
    wait_for 60 "the program to be restarted with the SVID" guest '[ "$(tail -n 1 /run/started)" = "$(readlink /run/miaf-agent/keys/wfm-client/current)" ]'
    # And again after each renewal by hand, which is these steps once more.
    guest 'readlink /run/miaf-agent/keys/wfm-client/current >/run/had'
    guest "set -e; cd /etc/miaf-agent; $(documented csr identities.md); $(documented sign identities.md); $(documented install identities.md)" >/dev/null 2>&1
    wait_for 60 "the program to be restarted with the next SVID" guest \
        'new=$(readlink /run/miaf-agent/keys/wfm-client/current); [ "$new" != "$(cat /run/had)" ] && [ "$(tail -n 1 /run/started)" = "$new" ]'
    guest 'sort /run/started | uniq --repeated' | expect_output
    is_the_same_device
    [ "$(field '.identities[0].svid.serial')" = "$serial" ] || fail "the device has another SVID"
}
client() { field ".identities[] | select(.name == \"wfm-client\") | $1"; } # FILTER
client_is() { [ "$(client .state)" = "$1" ]; }

removed_from_the_configuration_it_is_retired_and_the_device_goes_on() {
    local serial pid
    serial=$(field '.identities[0].svid.serial') pid=$(main_pid)
    guest 'rm /etc/miaf-agent/config.d/wfm-client.toml && systemctl reload miaf-agent'
    wait_for 60 "the client to be gone" client_is ''
    guest 'cd /var/lib/miaf-agent/private && ls retired-*-wfm-client/identity.json && ! test -e identities/wfm-client' >/dev/null \
        || fail "it is not retired: $(guest 'find /var/lib/miaf-agent/private')"
    guest '! ls -d /run/miaf-agent/keys/wfm-client/current /var/lib/miaf-agent/svid/wfm-client/current /var/lib/miaf-agent/svid/wfm-client/authorized.json 2>/dev/null' \
        || fail "it is not withdrawn"
    is_the_same_device
    [ "$(field '.identities[0].svid.serial')" = "$serial" ] || fail "the device has another SVID"
    [ "$(main_pid)" = "$pid" ] || fail "the agent was started again"
    guest 'systemctl disable --now miaf-agent-notify@wfm-client.path
        systemctl stop wfm-client
        cd /etc/miaf-agent && rm -r issued config.d/keys.toml ca.* index.* wfm-client.*
        rm /run/systemd/system/wfm-client.service /run/had /run/started
        systemctl daemon-reload && systemctl reload miaf-agent' 2>/dev/null
}

a_device_without_state_enrolls_at_boot_as_the_same() {
    forget_everything
    shut_down
    boot
    wait_for 120 "the identity" state_is active
    is_the_same_device
}

after_a_reboot_it_is_served_before_any_network() {
    local serial
    serial=$(field '.identities[0].svid.serial')
    shut_down
    network off
    boot
    state_is active || fail "the device is $(state)"
    is_the_same_device
    [ "$(field '.identities[0].svid.serial')" = "$serial" ] || fail "this is not the SVID that it had"
    guest 'miaf-agent svid | grep -q "BEGIN CERTIFICATE" && test -r /var/lib/miaf-agent/svid/device/current/svid.pem'
    network on
}

killed_it_comes_back_and_who_asks_meanwhile_is_answered() {
    local pid sockets
    pid=$(main_pid) sockets=$(socket_files)
    guest 'kill -KILL $(systemctl show --property MainPID --value miaf-agent)
        curl --silent --fail --max-time 30 --unix-socket /run/miaf-agent/agent.sock http://agent/readyz' \
        | expect_output '{"ready":true}'
    [ "$(main_pid)" != "$pid" ] || fail "it was not killed"
    is_the_same_device
    [ "$(socket_files)" = "$sockets" ] || fail "the sockets are others than before"
}

hanging_it_is_ended_by_the_watchdog() {
    local pid
    guest 'mkdir -p /run/systemd/system/miaf-agent.service.d
        printf "[Service]\nWatchdogSec=5s\nRestartSec=1s\n" >/run/systemd/system/miaf-agent.service.d/test.conf
        systemctl daemon-reload && systemctl restart miaf-agent'
    pid=$(main_pid)
    sleep 11 # fed, it lives longer than the watchdog waits
    [ "$(main_pid)" = "$pid" ] || fail "it was ended although it did not hang"
    guest "kill -STOP $pid"
    wait_for 60 "another process" other_pid_than "$pid"
    journal --output=cat --since=-3min | grep 'Watchdog timeout' >/dev/null || fail "it was not the watchdog"
    wait_for 60 "the agent's answer" state_is active
    is_the_same_device
    guest 'rm -r /run/systemd/system/miaf-agent.service.d && systemctl daemon-reload && systemctl restart miaf-agent'
}

a_broken_configuration_ends_nothing_for_good() {
    local was
    # Read while it runs: the reload fails, and the agent says so and goes on with what it has.
    guest 'echo "[renewal" >/etc/miaf-agent/config.d/broken.toml'
    guest 'systemctl reload miaf-agent' 2>/dev/null && fail "the reload of a broken configuration succeeded"
    wait_for 60 "the complaint" complained_of broken.toml
    state_is active || fail "the device is $(state)"
    field .lastError.detail | grep -F 'broken.toml:1' >/dev/null || fail "the status does not name the line"
    # Found at the start: it serves what it holds, and is not started again.
    was=$(field '.identities[0].svid.serial')
    guest 'systemctl restart miaf-agent'
    wait_for 60 "the agent to be up again" state_is blocked
    [ "$(field '.identities[0].svid.serial')" = "$was" ] || fail "what it holds is not served"
    field .lastError.detail | grep -F 'broken.toml:1' >/dev/null || fail "the status does not name the line"
    journal --output=cat --priority=err | grep -F broken.toml | grep -vF 'stays in use' >/dev/null \
        || fail "why it is blocked is not among the errors of the journal"
    guest 'rm /etc/miaf-agent/config.d/broken.toml'
    wait_for 60 "the agent to go on" state_is active
    guest 'systemctl reload miaf-agent' || fail "the reload of a good configuration failed"
    is_the_same_device
}

complained_of() { journal --output=cat --priority=err --since=-60s | grep -F "$1" >/dev/null; }

who_asks_during_a_restart_is_answered() {
    ask_all_the_time
    guest 'systemctl restart miaf-agent'
    everybody_was_answered
}

active_by_the_world_s_clock() {
    guest "date --set @$(date +%s)" >/dev/null
    state_is active
}
a_tpm_that_appears_late_is_used() {
    local pid
    guest 'apt-get install --yes --quiet swtpm && modprobe --dry-run tpm_vtpm_proxy' 300 >/dev/null
    # Made before it is needed: the kernel does not wait for a TPM that is being manufactured.
    guest 'mkdir late && swtpm socket --tpm2 --tpmstate dir=late --flags not-need-init,startup-clear --daemon --pid file=late.pid \
            --server type=tcp,port=2321 --ctrl type=tcp,port=2322
        tpm2_getcap --tcti swtpm:port=2321 properties-fixed && kill $(cat late.pid)' >/dev/null
    forget_everything
    shut_down
    # The driver of this machine's chip does not start. Later another comes, with a TPM in software behind it: to the
    # kernel, to udev and to the agent it is one like any other.
    # Its time goes by the instructions that it executes: the kernel gives a TPM two seconds for its self-test.
    kernel_arguments=initcall_blacklist=init_tis
    clock=(-icount shift=0)
    boot
    guest 'test ! -e /dev/tpmrm0' || fail "the chip is there from the start"
    wait_for 120 "the agent to say what it lacks" state_is blocked
    pid=$(main_pid)
    guest 'modprobe tpm_vtpm_proxy
        systemd-run --quiet --unit late-tpm swtpm chardev --vtpm-proxy --tpm2 --tpmstate dir=/root/late' 2>/dev/null
    wait_for 120 "the agent to have the TPM" guest "$(agent_has_tpm)"
    [ "$(main_pid)" != "$pid" ] || fail "it has not been started again"
    # On a slow processor such a clock falls minutes behind the world's, by every look at it too, and what the MIS has
    # issued is not valid yet.
    poll=3 wait_for 120 "the identity" active_by_the_world_s_clock
    is_the_same_device
    [ "$(starts --boot)" -eq 2 ] || fail "it was started $(starts --boot) times"
    # With its own chip back, in an ordinary boot, there is nothing to do.
    forget_everything
    shut_down
    kernel_arguments=
    clock=()
    boot
    wait_for 120 "the identity" state_is active
    [ "$(starts --boot)" -eq 1 ] || fail "it was started $(starts --boot) times"
}
forget_everything() { guest 'systemctl stop miaf-agent.service && find /var/lib/miaf-agent -mindepth 1 -delete' 2>/dev/null; }
agent_has_tpm() { echo 'test -c /proc/$(systemctl show --property MainPID --value miaf-agent)/root/dev/tpmrm0'; }

the_tests_for_real_chips_pass_on_this_one() {
    strip -o "$work/hw-tests" "$target/debug/hw-tests"
    put "$work/hw-tests" /root/hw-tests
    guest 'chmod +x hw-tests && TSS2_LOG=all+none ./hw-tests --tcti device:/dev/tpmrm0 --rounds 20' 300 >"$work/hw-tests.log" || fail "$(cat "$work/hw-tests.log")"
    tail -n 1 "$work/hw-tests.log" | grep ' 0 failed' >/dev/null || fail "$(tail -n 1 "$work/hw-tests.log")"
}

an_upgrade_keeps_identity_and_configuration() {
    local serial sockets starts version
    serial=$(field '.identities[0].svid.serial') sockets=$(socket_files)
    guest "sed -i 's/^#level = \"info\"/level = \"debug\"/' /etc/miaf-agent/config.toml && grep -q '^level' /etc/miaf-agent/config.toml"
    put "$work/../newer/miaf-agent_newer.deb" /root/newer.deb
    ask_all_the_time
    starts=$(starts)
    guest 'DEBIAN_FRONTEND=noninteractive apt-get install --yes ./newer.deb' 300 >"$work/upgrade.log"
    everybody_was_answered
    version=$(guest 'dpkg-query --show --showformat "\${Version}" miaf-agent')
    [[ $version == *+newer ]] || fail "the version is $version"
    [ $(($(starts) - starts)) -eq 1 ] || fail "the service was started $(($(starts) - starts)) times"
    guest "grep -q '^level = \"debug\"' /etc/miaf-agent/config.toml" || fail "the changed configuration was lost"
    is_the_same_device
    [ "$(field '.identities[0].svid.serial')" = "$serial" ] || fail "this is not the SVID that it had"
    [ "$(socket_files)" = "$sockets" ] || fail "the sockets are others than before"
}
starts() { # [--boot]: how often the agent was started
    journal --output=cat "$@" | grep -c '^miaf-agent is up'
}

removed_it_leaves_its_state() {
    guest 'systemctl enable --now miaf-agent-notify@device.path' 2>/dev/null
    guest 'DEBIAN_FRONTEND=noninteractive apt-get remove --yes miaf-agent' 300 >"$work/remove.log"
    guest '! systemctl is-active miaf-agent.service miaf-agent.socket miaf-agent-sign.socket miaf-agent-admin.socket miaf-agent-notify@device.path' >/dev/null \
        || fail "a unit is still active"
    guest '! ls /etc/systemd/system/*.wants/miaf-agent-notify@* 2>/dev/null' || fail "a unit of notify is still enabled"
    guest '! ls /usr/bin/miaf-agent /run/miaf-agent/*.sock 2>/dev/null && ! grep --quiet --no-messages "^miaf-agent$" /proc/[0-9]*/comm' || fail "something is left"
    guest 'ls /var/lib/miaf-agent/private/identities/device/identity.json /etc/miaf-agent/config.toml /etc/miaf-agent/config.d/site.toml' >/dev/null
}

purged_it_leaves_nothing_of_its_own() {
    guest 'DEBIAN_FRONTEND=noninteractive apt-get purge --yes miaf-agent' 300 >"$work/purge.log"
    guest '! ls -d /var/lib/miaf-agent /run/miaf-agent /etc/miaf-agent/config.toml /etc/miaf-agent/config.d 2>/dev/null' \
        || fail "something is left"
    guest 'ls /etc/miaf-agent' | expect_output factory.key factory.pem mis-ca.pem # which its maker alone can make again
    guest '! grep --recursive --files-with-matches miaf-agent /etc/systemd /run/systemd/system /var/lib/systemd/deb-systemd-helper-enabled 2>/dev/null' \
        || fail "systemd still knows it"
    shut_down
}
