# The .rpm in a root directory, and the same directory booted. The system in it is Debian's, since no other can be had offline:
# rpm's database knows of none of its packages, so rpm is told not to look there (--nodeps), and every requirement is held
# against the directory itself.

steps() {
    cat <<'STEPS'
the_root_has_what_the_package_requires
it_is_installed_into_the_root
users_and_enabled_units_are_there_before_anything_runs
the_root_boots_and_the_agent_is_unconfigured
configured_it_enrolls
an_upgrade_keeps_identity_and_configuration
erased_it_leaves_its_state
STEPS
}

units="miaf-agent.service miaf-agent.socket miaf-agent-sign.socket miaf-agent-admin.socket"
in_root() { chroot "$work/root" "$@"; }
package() { echo "$work"/../package/miaf-agent-*.rpm; }
newer_package() { echo "$work"/../newer/miaf-agent-*.rpm; }
# Debian's rpm has its database elsewhere, and advises against itself.
as_elsewhere="--dbpath /var/lib/rpm --force-debian"
# shellcheck disable=SC2086 # words on purpose
rpm_in_root() { rpm --root "$work/root" $as_elsewhere "$@"; }
guest_rpm() { guest "rpm $as_elsewhere $1"; }

the_root_has_what_the_package_requires() {
    local requirement
    in_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet \
        libtss2-esys-3.0.2-0 libtss2-tctildr0 libtss2-tcti-device0 rpm >"$work/libraries.log"
    in_root ldconfig --print-cache >"$work/ldconfig"
    in_root rpm --showrc >"$work/showrc"
    rpm --query --package --requires "$(package)" | sort --unique >"$work/requirements"
    grep -q '^libtss2-tcti-device\.so\.0' "$work/requirements" || fail "what the agent opens by name is not required"
    while read -r requirement; do
        case $requirement in
        lib*.so.*) library_is_there "$requirement" ;;
        rtld\(GNU_HASH\)) library_is_there "libc.so.6()" ;; # the loader, which comes with it
        /*) [ -x "$work/root$requirement" ] ;;
        systemd) [ -x "$work/root/lib/systemd/systemd" ] ;;
        rpmlib\(*) grep -qF "${requirement%% *} =" "$work/showrc" ;;
        config\(miaf-agent\)*) ;; # what it provides itself
        *) false ;;
        esac || fail "the root does not have $requirement, or this test cannot tell"
    done <"$work/requirements"
}
library_is_there() { # NAME(SYMBOL VERSION)…, as rpm writes it
    local name=${1%%(*} version file
    version=${1#*(}
    version=${version%%)*}
    file=$(awk -v name="$name" '$1 == name { print $NF; exit }' "$work/ldconfig")
    [ -n "$file" ] || return 1
    [ -z "$version" ] && return
    objdump --private-headers "$work/root$(in_root realpath "$file")" \
        | sed -n '/^Version definitions:/,/^$/p' >"$work/versions"
    grep -qw "${version//./\\.}" "$work/versions"
}

it_is_installed_into_the_root() {
    rpm_in_root --install --nodeps "$(package)" >"$work/install.log" 2>&1 || fail "$(cat "$work/install.log")"
    # Not every line of Debian's tools is a complaint; a scriptlet that failed is.
    if grep -i 'scriptlet' "$work/install.log"; then fail "a scriptlet failed"; fi
    rpm_in_root --verify --nodeps miaf-agent | expect_output # nothing
    rpm_in_root --query --queryformat '[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]' miaf-agent \
        | grep -v -e '^-rw-r--r-- root root ' -e '^drwxr-xr-x root root ' | expect_output '-rwxr-xr-x root root /usr/bin/miaf-agent'
    rpm_in_root --query --configfiles miaf-agent | expect_output /etc/miaf-agent/config.toml
}

users_and_enabled_units_are_there_before_anything_runs() {
    in_root id --groups --name miaf-agent | tr ' ' '\n' | sort | expect_output miaf miaf-agent miaf-sign tss
    # shellcheck disable=SC2086 # words on purpose
    systemctl --root="$work/root" is-enabled $units | expect_output enabled enabled enabled enabled
}

the_root_boots_and_the_agent_is_unconfigured() {
    start_mis
    network=on
    boot
    # shellcheck disable=SC2086
    guest "systemctl is-active $units" | expect_output active active active active
    state_is unconfigured || fail "the device is $(state)"
    guest 'stat --format "%A %U %G %n" /run/miaf-agent /run/miaf-agent/*' | expect_output \
        'drwxr-xr-x root root /run/miaf-agent' \
        'srw------- root root /run/miaf-agent/admin.sock' \
        'srw-rw---- root miaf /run/miaf-agent/agent.sock' \
        'drwxr-xr-x miaf-agent miaf-agent /run/miaf-agent/keys' \
        'srw-rw---- root miaf-sign /run/miaf-agent/sign.sock'
}

configured_it_enrolls() {
    local file
    put "$work/mis/tls-ca.pem" /root/mis-ca.pem
    for file in factory.pem factory.key; do put "$work/mis/$file" "/root/$file"; done
    guest "$(documented configure)"
    wait_for 60 "the first identity" state_is active
    field '.identities[0].spiffeId' >"$work/identity"
    [ "$(field '.identities[0].key.protection')" = hardware ] || fail "the key is not in the TPM"
    # What is required by name is what is really opened.
    guest 'grep -q /libtss2-tcti-device.so.0 /proc/$(systemctl show --property MainPID --value miaf-agent)/maps' \
        || fail "the agent reaches the TPM by another library"
}

an_upgrade_keeps_identity_and_configuration() {
    local serial sockets pid
    serial=$(field '.identities[0].svid.serial') sockets=$(socket_files) pid=$(main_pid)
    guest "sed -i 's/^#level = \"info\"/level = \"debug\"/' /etc/miaf-agent/config.toml && grep -q '^level' /etc/miaf-agent/config.toml"
    put "$(newer_package)" /root/newer.rpm
    ask_all_the_time
    guest_rpm '--upgrade --nodeps newer.rpm' >"$work/upgrade.log" 2>&1 || fail "$(cat "$work/upgrade.log")"
    everybody_was_answered
    [ "$(guest_rpm '--query miaf-agent')" = "$(rpm --query --package "$(newer_package)")" ] || fail "it is not the newer one"
    [ "$(main_pid)" != "$pid" ] || fail "the service was not restarted"
    guest "grep -q '^level = \"debug\"' /etc/miaf-agent/config.toml" || fail "the changed configuration was lost"
    is_the_same_device
    [ "$(field '.identities[0].svid.serial')" = "$serial" ] || fail "this is not the SVID that it had"
    [ "$(socket_files)" = "$sockets" ] || fail "the sockets are others than before"
}

erased_it_leaves_its_state() {
    guest 'systemctl enable --now miaf-agent-notify@device.path' 2>/dev/null
    guest_rpm '--erase miaf-agent' >"$work/erase.log" 2>&1 || fail "$(cat "$work/erase.log")"
    guest "! systemctl is-active $units miaf-agent-notify@device.path" >/dev/null || fail "a unit is still active"
    guest '! ls /usr/bin/miaf-agent /run/miaf-agent/*.sock 2>/dev/null' || fail "something is left"
    guest '! grep --recursive --files-with-matches miaf-agent /etc/systemd' || fail "systemd still knows it"
    # The changed configuration under the name that rpm gives it; identity, factory credential and user as they were.
    guest 'ls /var/lib/miaf-agent/private/identities/device/identity.json /etc/miaf-agent/config.toml.rpmsave /etc/miaf-agent/config.d/site.toml \
        /etc/miaf-agent/factory.key && id miaf-agent' >/dev/null
    shut_down
}
