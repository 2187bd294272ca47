#!/bin/sh
# modprobe: loads the double's module, which is a version in a file. Says what the kernel says where it refuses.
for name; do :; done
[ "$name" != nvidia_uvm ] || { [ -e /proc/driver/nvidia/version ] && exit 0 || exit 1; }
version=$(modinfo -k "$(uname -r)" -F version nvidia 2>/dev/null) || {
    echo "modprobe: FATAL: Module $name not found in directory /lib/modules/$(uname -r)" >&2
    exit 1
}
if [ -e /opt/double/refuse ]; then
    echo "modprobe: ERROR: could not insert 'nvidia': $(cat /opt/double/refuse)" >&2
    exit 1
fi
[ ! -e /proc/driver/nvidia/version ] || exit 0
mkdir -p /opt/double/proc/nvidia
{
    echo "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  $version  Release Build  (dvs-builder@U22-I3-B17-02-5)  Tue Sep 23 09:55:41 UTC 2025"
    echo "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)"
} >/opt/double/proc/nvidia/version
ln -sfn ../../../drivers/nvidia "/opt/double/pci/0000:01:00.0/driver"
mknod -m 666 /dev/nvidiactl c 1 3 2>/dev/null
exit 0
