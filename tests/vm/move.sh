# A file system on the kernel's NBD device, and a planned move of the Primary without clients. Sourced by guest.sh.
#
# mkfs, mount and fio with four connections; afterwards the other node holds the same file system: it checks clean, its
# files have the same sums, and the two disks are equal byte for byte.

sums() { (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

fill() {
    mkdir /mnt/tree
    local i
    for i in $(seq 1 40); do
        head -c $((i * 9973)) /dev/urandom >"/mnt/tree/file$i"
    done
    sync -f /mnt
    fio --name=verify --filename=/mnt/fio.data --size=24M --rw=randwrite --bsrange=4k-64k --ioengine=libaio \
        --iodepth=8 --direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 \
        --verify_state_save=0 --minimal >/run/fio.out || { cat /run/fio.out; die 'fio'; }
    rm /mnt/tree/file7
}

# Allocated bytes of a node's disk.
allocated() { stat --format='%b' "/dev/shm/$1.img" | awk '{ print $1 * 512 }'; }

# What is discarded takes no space on either copy. What is zeroed does (blkdiscard --zeroout asks for zeroes that keep
# their space, by NO_HOLE or, with an older kernel, as data), and reads as zeroes.
check_trim() {
    local node before end=$((disk_mib - 64))
    dd if=/dev/urandom of=/dev/nbd0 bs=1M seek=$end count=64 oflag=direct status=none
    declare -A before
    for node in "${nodes[@]}"; do before[$node]=$(allocated "$node"); done
    blkdiscard --force --offset $((end << 20)) --length $((32 << 20)) /dev/nbd0
    blkdiscard --force --zeroout --offset $(((end + 32) << 20)) --length $((32 << 20)) /dev/nbd0
    sync /dev/nbd0
    cmp --ignore-initial=$(((end + 32) << 20)):0 --bytes=$((32 << 20)) /dev/nbd0 /dev/zero
    for node in "${nodes[@]}"; do
        echo "$node: ${before[$node]} bytes before, $(allocated "$node") after"
        [ $((before[$node] - $(allocated "$node"))) = $((32 << 20)) ] || die "not 32 MiB of holes on $node"
    done
}

step 'attach alpha with four connections'
modprobe nbd
nbd-client -unix "$work/alpha.nbd" -name r0 /dev/nbd0 -connections 4
eventually has_size
step 'trim'
check_trim
step 'make a file system, write'
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
fill
fstrim -v /mnt
sums >/run/before
umount /mnt
nbd-client -d /dev/nbd0
eventually is_detached

step 'move to beta'
# The server may notice closed sockets a moment after the client closed them.
eventually ctl alpha demote r0
move_address beta
ctl beta promote r0
ctl beta wait r0 --for primary -t $step_seconds
ctl beta status

step 'attach beta, check, compare'
attach -connections 4
e2fsck -fn /dev/nbd0
mount -o ro /dev/nbd0 /mnt
sums >/run/after
umount /mnt
detach
[ "$(wc -l </run/before)" = 40 ] || die "$(wc -l </run/before) files instead of 40"
cmp /run/before /run/after
eventually ctl beta demote r0
cmp /dev/shm/alpha.img /dev/shm/beta.img
step 'all equal'
