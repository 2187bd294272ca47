#!/bin/sh
# ubuntu-drivers list --gpgpu, with what apt of this machine can have.
[ "$*" = "list --gpgpu" ] || { echo "the double of ubuntu-drivers does not know: $*" >&2; exit 1; }
[ ! -e /opt/double/kernel-update ] || { echo "WARNING: the kernel has to be updated first" >&2; exit 1; }
echo "udevadm hwdb is deprecated. Use systemd-hwdb instead." >&2
for flavour in 570-server-open 580-server-open 580-server 570-open; do
    echo "nvidia-driver-$flavour, (kernel modules provided by linux-modules-nvidia-$flavour-generic)"
done
