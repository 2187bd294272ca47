#!/bin/sh
# nvidia-smi: answers as the real one where it is asked with --query-gpu, fails with its words and exit codes.
mine=$(readlink -f /usr/lib/*-linux-gnu/libnvidia-ml.so.1)
mine=${mine##*.so.}
loaded=$(sed -n 's/^NVRM version:.*  \([0-9][0-9.]*\)  .*/\1/p' /proc/driver/nvidia/version 2>/dev/null)
if [ -z "$loaded" ]; then
    echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running."
    echo
    exit 9
fi
if [ "$loaded" != "$mine" ]; then
    echo "Failed to initialize NVML: Driver/library version mismatch"
    echo "NVML library version: $(echo "$mine" | cut -d. -f1,2)"
    exit 18
fi
if [ -e /opt/double/fallen ]; then echo "No devices were found"; exit 6; fi
mode=/run/double-persistence
case $1 in
    --persistence-mode=1) echo Enabled >$mode; echo "Enabled persistence mode for GPU 00000000:01:00.0."; exit 0 ;;
esac
for word; do
    case $word in --query-gpu=*) asked=${word#*=} ;; esac
done
[ -n "$asked" ] || { echo "NVIDIA-SMI $mine             Driver Version: $loaded     CUDA Version: 13.0"; exit 0; }
line=
for field in $(echo "$asked" | tr , ' '); do
    case $field in
        index) value=0 ;;
        uuid) value=GPU-04922b12-e910-a747-8a82-8d4f4ced04af ;;
        name) value="NVIDIA GeForce RTX 4090" ;;
        driver_version) value=$loaded ;;
        memory.total) value=24564 ;;
        persistence_mode) value=$(cat $mode 2>/dev/null || echo Disabled) ;;
        *) echo "Field \"$field\" is not a valid field to query."; exit 2 ;;
    esac
    line="$line${line:+, }$value"
done
echo "$line"
