#!/bin/sh
# A machine that uses a volume: nbdfuse makes a file of the export, a loop device a disk of the file, and a file
# system is mounted from it. Then a command runs, and everything is let go in order.
#
#   mounted.sh DIR URI ext4|xfs make|keep COMMAND...     in mount and pid namespaces of its own (mounted.rs)
#
# The volume is at DIR/mnt, seen in these namespaces only: when they are killed, mount and loop device go with
# them, as they do when a machine loses power. The file system has a mount namespace of its own, which nbdfuse does not
# share: if it did, its death might have to unmount that before it closes /dev/fuse, and would wait for itself.
set -eu

if [ "$1" = inside ]; then
    dir=$2 type=$3
    shift 3
    mount -t "$type" -o loop "$dir/fuse/volume" "$dir/mnt"
    "$@"
    umount "$dir/mnt"
    exit
fi

dir=$1 uri=$2 type=$3 how=$4
shift 4
mkdir -p "$dir/fuse" "$dir/mnt"
nbdfuse "$dir/fuse/volume" "$uri" &
server=$!
tries=0
until [ -s "$dir/fuse/volume" ]; do
    kill -0 "$server"
    tries=$((tries + 1))
    [ $tries -lt 1000 ]
    sleep 0.02
done
case $how-$type in
    make-ext4) mkfs.ext4 -q -F -E nodiscard "$dir/fuse/volume" ;;
    make-xfs) mkfs.xfs -q -f -K "$dir/fuse/volume" ;;
esac
unshare --mount sh "$0" inside "$dir" "$type" "$@"
# The kernel may hold the file for a moment after the loop device was given back.
tries=0
until fusermount3 -u "$dir/fuse"; do
    tries=$((tries + 1))
    [ $tries -lt 200 ]
    sleep 0.05
done
wait "$server"
