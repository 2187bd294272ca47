#!/bin/sh
# nvidia-ctk 1.20: its version, and a specification of the cards for the driver that is loaded.
case "$*" in
    --version) echo "NVIDIA Container Toolkit CLI version 1.20.0"; echo "commit: 0000000000000000000000000000000000000000"; exit ;;
    "cdi generate") ;;
    *) echo "the double of nvidia-ctk does not know: $*" >&2; exit 1 ;;
esac
nvidia-smi --query-gpu=index --format=csv,noheader >/dev/null || { echo "failed to initialize NVML: ERROR_DRIVER_NOT_LOADED" >&2; exit 1; }
library=$(readlink -f /usr/lib/*-linux-gnu/libnvidia-ml.so.1)
version=${library##*.so.}
output=${NVIDIA_CTK_CDI_OUTPUT_FILE_PATH:?}
mkdir -p "$(dirname "$output")"
# The device itself is one that every machine has.
device() { printf '    - name: "%s"\n      containerEdits:\n        deviceNodes:\n            - path: /dev/nvidia0\n              hostPath: /dev/null\n' "$1"; }
{
    printf -- '---\ncdiVersion: %s\nkind: nvidia.com/gpu\ndevices:\n' "$(cat /opt/double/cdi-version 2>/dev/null || echo 0.5.0)"
    device 0
    device GPU-04922b12-e910-a747-8a82-8d4f4ced04af
    device all
    printf 'containerEdits:\n    env:\n        - NVIDIA_VISIBLE_DEVICES=void\n    mounts:\n'
    # What the real one writes from 1.19 on, of devices below /dev/dri.
    [ "$(cat /opt/double/cdi-version 2>/dev/null)" != 0.7.0 ] || gids='    additionalGids:\n        - 44\n'
    printf '        - hostPath: %s\n          containerPath: %s\n' "${library%/*}/libcuda.so.$version" "${library%/*}/libcuda.so.$version"
    printf '          options:\n            - ro\n            - nosuid\n            - nodev\n            - bind\n'
    printf "${gids-}"
} >"$output"
