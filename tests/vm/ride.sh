# The kernel's client through restart and failover, in CI: a few short rounds. Sourced by guest.sh.
#
# nbd-client alone gets no request over the end of its connections, with any of its options; what must hold is that it
# ends: with an error, in time, and the device can be detached. Through qemu-nbd everything rides over, and a file system
# that is in use meanwhile is whole on both copies.

ctl alpha promote r0
move_address alpha

step 'attach with a time-out, end the server: an error in time, and the device comes off'
attach -connections 4 -timeout 5
start_load /dev/nbd0
happen restart-kill
end_load 30
[ "$outcome" = error ] || die "nbd-client alone: $outcome"
detach
back_to_alpha

step 'attach through qemu-nbd, fail over under a file system'
attach_through_qemu -connections 4
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
start_load /mnt/load
happen failover
end_load 60
[ "$outcome" = rides-over ] || die "through qemu-nbd: $outcome, $(cat /run/load.err)"
echo "beta was Primary after $gap_s s, the longest write took $stall_s s"
umount /mnt
detach
back_to_alpha
attach
e2fsck -fn /dev/nbd0
detach
ctl alpha demote r0
cmp /dev/shm/alpha.img /dev/shm/beta.img
step 'all equal'
