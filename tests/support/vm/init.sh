#!/busybox sh
# First process of the machine: load modules, find the disks by the file that names their
# role, put a root directory together and hand over to guest.py.
B=/busybox
$B mkdir -p /bin /dev /proc /sys /new /try
$B --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
devices=$?
exec </dev/console >/dev/console 2>&1
trouble() { echo "@unionfs-vm {\"event\": \"trouble\", \"text\": \"$1\"}"; sleep 1; reboot -f; }

[ $devices = 0 ] || trouble "this kernel has no devtmpfs (CONFIG_DEVTMPFS)"

for module in $(cat /modules/order); do
    insmod "/modules/$module" 2>/dev/null
done
mount -t tmpfs -o mode=755 root /new || trouble "this kernel has no tmpfs"
grep -qw ext4 /proc/filesystems || trouble "this kernel has no ext4: build it in or give MODULES="

system= checkout= scratch=
for _ in 1 2 3 4 5 6 7 8 9 10; do
    for disk in $(ls /sys/class/block); do
        mount -t ext4 -o ro "/dev/$disk" /try 2>/dev/null || continue
        role=$(cat /try/unionfs-vm-role 2>/dev/null)
        umount /try
        case "$role" in
            system) system=/dev/$disk ;;
            checkout) checkout=/dev/$disk ;;
            scratch) scratch=/dev/$disk ;;
        esac
    done
    [ -n "$system" ] && [ -n "$checkout" ] && [ -n "$scratch" ] && break
    sleep 1
done
[ -n "$scratch" ] ||
    trouble "no disks seen: this kernel needs virtio_blk and virtio_pci, or ahci and sd_mod"

cd /new || exit
mkdir -p dev proc sys run tmp root var mnt vm/system
mount -t ext4 -o ro "$system" vm/system
mkdir usr && mount -o bind vm/system/usr usr
for link in bin sbin lib lib64; do ln -s "usr/$link" "$link"; done
cp -a vm/system/etc etc
mount -t ext4 "$scratch" tmp && chmod 1777 tmp
mkdir -p var/tmp tmp/.var-tmp && chmod 1777 tmp/.var-tmp
mount -o bind tmp/.var-tmp var/tmp
place=$(cat /checkout)
mkdir -p "/new$place" && mount -t ext4 -o ro "$checkout" "/new$place"
cp /busybox /plan.json vm/
mount -o move /dev dev
mount -o move /proc proc
mount -o move /sys sys
mount -t tmpfs -o mode=755 run run
mkdir -p dev/pts dev/shm
mount -t devpts -o mode=620,ptmxmode=666 pts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ifconfig lo up
hostname unionfs-vm
exec switch_root /new /usr/bin/python3 -B "$place/tests/support/vm/guest.py"
