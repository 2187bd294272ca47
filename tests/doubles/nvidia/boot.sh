#!/bin/sh
# What the kernel and udev do at a boot: the card is there, and the driver that is installed takes it.
mkdir -p /opt/double/pci/0000:01:00.0 /opt/double/proc
rm -rf /opt/double/proc/nvidia /dev/nvidiactl
echo 0x10de >/opt/double/pci/0000:01:00.0/vendor
echo 0x030000 >/opt/double/pci/0000:01:00.0/class
rm -f /opt/double/pci/0000:01:00.0/driver
mount --bind /opt/double/pci /sys/bus/pci/devices && mount --bind /opt/double/proc /proc/driver || exit 1
if modinfo -k "$(uname -r)" -F version nvidia >/dev/null 2>&1; then
    modprobe nvidia
else
    ln -sfn ../../../drivers/nouveau /opt/double/pci/0000:01:00.0/driver
fi
exit 0
