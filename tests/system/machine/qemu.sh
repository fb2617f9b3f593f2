# A machine in qemu: Debian's kernel with its own TPM driver on an emulated chip (TPM TIS, swtpm behind it), an emulated
# processor, a disk. A power cut ends qemu: what the guest had not yet written to its disk is lost.

clock=() # qemu's options for it, if any
disk=(-drive "file=$work/disk.img,format=raw,if=none,id=disk,cache=unsafe" -device nvme-ns,drive=disk,nsid=1)
root_device=/dev/nvme0n1 # what the guest calls that disk
transfer_device=/dev/nvme0n2 # and the one for files from here
disk_server= # a process that the disk needs, if any

make_machine() {
    cp --sparse=always "$image/disk.img" "$work/disk.img"
    truncate --size 64M "$work/transfer.img"
    mkdir "$work/tpm"
}

# Now and then the emulated machine hangs in its kernel, in the second second of a boot, before anything of Debian's runs.
# It is switched off and on again then, which is a power cut more, and said.
power_on() {
    local try
    for try in 1 2 3; do
        switch_on
        if ! (guest true 60) 2>>"$work/errors.log"; then
            echo "$machine: the guest did not come up at try $try; it is switched off and on again"
        elif (the_firmware_gave_the_tpm_up) 2>>"$work/errors.log"; then
            echo "$machine: the firmware gave the TPM up at try $try; the machine is switched off and on again"
        else
            return 0
        fi
        kill -KILL "$power"
        power_is_off
    done
    fail "the guest does not come up"
}
# On a busy host the TPM does not respond within the time that the emulated firmware gives it. SeaBIOS then
# disables the TPM's owner hierarchy until the next reset, and the agent waits for that, as its error says.
the_firmware_gave_the_tpm_up() {
    guest 'tpm2_getcap properties-variable 2>/dev/null' | grep -q 'shEnable: *0'
}
switch_on() {
    rm -f "$work"/{shell.in,shell.out,monitor}
    mkfifo "$work"/{shell.in,shell.out,monitor}
    exec {to_shell}<>"$work/shell.in" {from_shell}<>"$work/shell.out" {monitor}<>"$work/monitor"
    swtpm socket --tpm2 --tpmstate "dir=$work/tpm" --ctrl "type=unixio,path=$work/tpm.sock" --terminate \
        >>"$work/tpm.log" 2>&1 &
    tpm=$!
    wait_for 10 "swtpm" test -S "$work/tpm.sock"
    disk_on
    # No accelerator: it runs where there is none. The disk's cache is the host's memory, which a power cut spares.
    # One controller with two disks: their names are certain. -S: the state of the network counts from the first moment.
    # no_timer_check: on a busy machine, the timer does not come as soon as the kernel expects it, and the kernel gives up.
    qemu-system-x86_64 -S -nodefaults -no-user-config -display none -no-reboot \
        -machine q35,accel=tcg -cpu qemu64 -m 768 -rtc base=utc "${clock[@]}" \
        -kernel "$image/vmlinuz" -append "root=$root_device rw console=ttyS0 quiet panic=-1 mitigations=off no_timer_check \
            ${kernel_arguments:-}" \
        -device nvme,id=nvme,serial=0 "${disk[@]}" \
        -drive "file=$work/transfer.img,format=raw,if=none,id=transfer,cache=unsafe" -device nvme-ns,drive=transfer,nsid=2 \
        -netdev user,id=net -device virtio-net-pci,netdev=net,romfile= -device virtio-rng-pci \
        -device virtio-serial-pci -chardev "pipe,id=shell,path=$work/shell" \
        -device virtserialport,chardev=shell,name=shell \
        -chardev "socket,id=tpm,path=$work/tpm.sock" -tpmdev emulator,id=tpm,chardev=tpm -device tpm-tis,tpmdev=tpm \
        -chardev "file,id=console,path=$work/console.log,append=on" -serial chardev:console \
        -monitor stdio <"$work/monitor" >>"$work/monitor.log" 2>&1 &
    power=$!
    network "$network"
    echo cont >&"$monitor"
}

disk_on() { :; } # it is a file

tpm_has_its_group() { :; } # udev sees to it

guest() { # COMMAND [SECONDS]: run by root; its output, errors and exit status are this function's
    local number=$EPOCHREALTIME seconds=${2:-120} answer="" status out err
    send "$number" "$seconds" "$1"
    until [ "$answer" = "$number" ]; do
        read -r -t $((seconds + 60)) -u "$from_shell" answer status out err || fail "the guest does not answer: $1"
    done
    base64 --decode <<<"${out#=}"
    base64 --decode <<<"${err#=}" >&2
    return "$status"
}
send() { # NUMBER SECONDS COMMAND
    echo "$1 $2 $(base64 --wrap 0 <<<"$3")" >&"$to_shell"
}
put() { # FILE PATH: a copy of the host's file in the guest
    dd if="$1" of="$work/transfer.img" conv=notrunc status=none
    guest "blockdev --flushbufs $transfer_device && head --bytes $(stat --format %s "$1") $transfer_device >'$2'"
}

network() { # on | off
    network=$1
    if [ -n "${power:-}" ]; then echo "set_link net $network" >&"$monitor"; fi
}

power_cut() {
    kill -KILL "$power"
    power_is_off
}
shut_down() {
    send 0 60 'systemctl start --no-block poweroff.target' # it may be off before it can answer
    power_is_off
}
power_is_off() { # qemu, the TPM and the disk have ended
    # shellcheck disable=SC2086 # there may be none
    wait_for 120 "the power to go off" gone "$power" "$tpm" $disk_server
    power=
    exec {to_shell}>&- {from_shell}>&- {monitor}>&-
}
