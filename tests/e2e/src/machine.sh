#!/bin/sh
# Makes a machine of the namespaces that it runs in: a name, files of its own over those of this system, a disk.
#
#   machine.sh NAME FOLDER PROGRAM DISK_BYTES    in mount, network and UTS namespaces of its own (machine.rs)
#
# What is written to /etc, /usr/bin and /var/lib is seen in these namespaces only, and gone with them. ssh and scp reach
# the machine whose process id is in FOLDER/../HOST.pid; cargo build puts PROGRAM where a release build would be.
set -eu
name=$1 folder=$2 program=$3 disk_bytes=$4
pids=${folder%/*}

hostname "$name"
mount -t tmpfs machine "$folder"
mkdir "$folder/dev" "$folder/dev/shm" "$folder/run" "$folder/home"
for own in /etc /usr/bin /var/lib; do
    place=$folder/over$own
    mkdir -p "$place/upper" "$place/work"
    mount -t overlay machine -o "lowerdir=$own,upperdir=$place/upper,workdir=$place/work" "$own"
done

cat > /usr/bin/ssh <<END
#!/bin/sh
host=\$1
shift
exec nsenter --target "\$(cat "$pids/\$host.pid")" --mount --uts --net sh -c "\$*"
END
cat > /usr/bin/scp <<'END'
#!/bin/sh
# scp -p FILE... HOST:FOLDER
set -eu
[ "$1" = -p ]
shift
eval "to=\${$#}"
while [ $# -gt 1 ]; do
    tar -C "$(dirname "$1")" -cp "$(basename "$1")" | ssh "${to%%:*}" tar -C "${to#*:}" -xp
    shift
done
END
cat > /usr/bin/cargo <<END
#!/bin/sh
[ "\$*" = "build --release" ] && exec install -D "$program" target/release/lockstep
echo "cargo \$*: not on this machine" >&2
exit 1
END
chmod 755 /usr/bin/ssh /usr/bin/scp /usr/bin/cargo

for device in null zero full random urandom; do
    touch "$folder/dev/$device"
    mount --bind "/dev/$device" "$folder/dev/$device"
done
truncate --size "$disk_bytes" "$folder/dev/vdb"
mount --bind "$folder/run" /run
mount --rbind "$folder/dev" /dev
ip link set lo up
echo "$$" > "$pids/$name.pid.new"
mv "$pids/$name.pid.new" "$pids/$name.pid"
exec sleep infinity
