#!/bin/bash
# The clients of Debian 13, which speak more of the protocol than those of Debian 12, in a folder of their own.
#
#   newer.sh get             prints where they are; they are fetched first (20 s, 150 MB) if they are not there
#   newer.sh run ROOT DIR PROGRAM...     runs one of them; DIR is /mnt in there. In a mount namespace of its own, so
#                                        that nothing stays mounted.
#
# They are unpacked and not installed, which takes a third of the time. They lie beside the images of the virtual
# machines, in ${LOCKSTEP_VM_CACHE:-~/.cache/lockstep-vm-images}; delete the folder to have it made anew.
set -euo pipefail

get() {
    local cache=${LOCKSTEP_VM_CACHE:-$HOME/.cache/lockstep-vm-images}
    local root=$cache/clients-13
    mkdir -p "$cache"
    exec 9>"$cache/clients.lock"
    flock 9
    if [ ! -d "$root" ]; then
        tmp=$(mktemp -d "$cache/build.XXXXXX")
        trap 'rm -rf "$tmp"' EXIT
        mmdebstrap --quiet --variant=extract --include=base-files,dash,fio,libnbd-bin,nbdkit,python3-libnbd,qemu-utils \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' trixie "$tmp/root" >&2
        mkdir -p "$tmp/root"/{dev,mnt,proc,tmp}
        mv "$tmp/root" "$root"
    fi
    echo "$root"
}

case $1 in
    get) get ;;
    run)
        root=$2 dir=$3
        shift 3
        mount --bind "$dir" "$root/mnt"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        cd /
        exec chroot "$root" "$@"
        ;;
esac
