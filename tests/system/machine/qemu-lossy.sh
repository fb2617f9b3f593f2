# The machine in qemu with a disk that has a volatile write cache, as disks have: in a power cut, what the guest had written
# since the last flush is lost, in whole or in part. machine/lossy-disk draws it from the story's seed.

# shellcheck source=tests/system/machine/qemu.sh
source "$here/machine/qemu.sh"

# Not on the NVMe controller, which ignores FUA in qemu 7.2: what is written with it would be lost like anything else. Of
# virtio's disk the guest knows that there is no FUA, and flushes instead. The guest never sees that the disk is gone: at
# the first request that fails, qemu stops it.
disk=(-drive "file=nbd+unix:///?socket=$work/disk.sock,format=raw,if=none,id=disk,cache=writeback,werror=stop,rerror=stop"
    -device virtio-blk-pci,drive=disk -initrd "$work/initrd")
root_device=/dev/vda
transfer_device=/dev/nvme0n1

disk_on() {
    [ -e "$work/initrd" ] || initial_ram_disk
    rm -f "$work"/{disk.sock,cut-power}
    nbdkit --foreground --unix "$work/disk.sock" python "$here/machine/lossy-disk" \
        "image=$work/disk.img" "cut=$work/cut-power" "seed=$RANDOM" </dev/null 2>>"$work/disk.log" &
    disk_server=$!
    wait_for 10 "the disk" test -S "$work/disk.sock"
}

power_cut() { # in a flush: at any other time nearly everything has been flushed, so often does the agent sync
    touch "$work/cut-power"
    wait_for 120 "the guest to flush" gone "$disk_server"
    power_cut_at_once
}
power_cut_at_once() {
    kill -KILL "$power"
    power_is_off
    echo "$machine: $(tail -n 1 "$work/disk.log")"
}

initial_ram_disk() { # for the driver of the disk, which is a module of the kernel
    local tree=$work/initrd.root programs=(/bin/bash /bin/mount /sbin/insmod /sbin/switch_root) drivers
    drivers=$(chroot "$image/root" modprobe --set-version "$(ls "$image/root/lib/modules")" --show-depends --all \
        virtio_pci virtio_blk | awk '!seen[$2]++')
    mkdir --parents "$tree"/{dev,proc,sys,run,root} # as switch_root looks for them
    # By default ext4 does for whoever renames a file over another what the agent must do itself: noauto_da_alloc.
    cat >"$tree/init" <<INIT
#!/bin/bash
$drivers
mount -n -t devtmpfs dev /dev
mount -n -t ext4 -o noauto_da_alloc $root_device /root
exec switch_root /root /sbin/init
INIT
    chmod 755 "$tree/init"
    {
        printf '%s\n' "${programs[@]}"
        awk '{ print $2 }' <<<"$drivers"
        chroot "$image/root" ldd "${programs[@]}" | grep --only-matching '/[^ :]*'
    } | sed 's|^/||' | chroot "$image/root" tar --create --dereference --files-from - | tar --extract --directory "$tree"
    (cd "$tree" && find . | cpio --quiet --create --format=newc) >"$work/initrd"
    rm -r "$tree"
}
