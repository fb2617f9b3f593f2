# A machine in systemd-nspawn: real systemd and real packages on the host's kernel, up in a second. Its TPM is a file that
# behaves like /dev/tpmrm0 (tpm-device), its network a cable. A power cut ends every process at once and resets the TPM;
# what was written to files before is not lost: losing that is the machine in qemu's part.

make_machine() {
    cp --archive "$image/root" "$work/root"
    mkdir "$work/tpm" "$work/dev"
    mount -t tmpfs tmpfs /run # where systemd-nspawn notes its machines; this one is nobody else's business
}

power_on() {
    "$here/machine/tpm-device" "$work/dev" "$work/tpm" >>"$work/tpm.log" 2>&1 &
    tpm=$!
    wait_for 10 "the TPM" test -e "$work/dev/tpmrm0"
    tpm_has_its_group
    systemd-nspawn --quiet --directory "$work/root" --machine device --boot --register=no --keep-unit \
        --link-journal=no --resolv-conf=off --timezone=off --console=pipe \
        --private-network --network-veth-extra=mis:host0 --bind "$work/dev/tpmrm0:/dev/tpmrm0" \
        </dev/null >>"$work/console.log" 2>&1 &
    power=$!
    wait_for 10 "systemd-nspawn" leader_is_known
    wait_for 10 "the network cable" ip link show dev mis
    ip address add 10.0.2.2/24 dev mis
    network "$network"
    wait_for 10 "systemd in the machine" guest true
}
tpm_has_its_group() { # what udev's rules do, where the group is there; a container has no udev
    local group
    group=$(awk -F : '$1 == "tss" { print $3 }' "$work/root/etc/group")
    if [ -n "$group" ]; then
        chown "0:$group" "$work/dev/tpmrm0"
        chmod 660 "$work/dev/tpmrm0"
    fi
}
leader_is_known() {
    read -r leader < <(cat "/proc/$power/task/$power/children" && echo) && [ "$(cat "/proc/$leader/comm")" = systemd ]
}

guest() { # COMMAND [SECONDS]: run by root; its output, errors and exit status are this function's
    nsenter --target "$leader" --mount --uts --ipc --net --pid --root env --ignore-environment \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 \
        timeout --kill-after=2 "${2:-120}" bash -c "cd && $1" </dev/null
}
put() { # FILE PATH: a copy of the host's file in the guest
    cp --no-preserve=all "$1" "$work/root$2"
}

network() { # on | off
    network=$1
    if [ -n "${power:-}" ]; then ip link set dev mis "$([ "$1" = on ] && echo up || echo down)"; fi
}

power_cut() {
    kill -KILL "$tpm" "$leader"
    power_is_off
}
shut_down() {
    guest 'systemctl start --no-block poweroff.target'
    power_is_off
}
power_is_off() {
    wait_for 60 "the power to go off" gone "$power"
    power=
    umount "$work/dev"
    wait_for 10 "the TPM to go off" gone "$tpm"
}
