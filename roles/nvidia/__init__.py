"""NVIDIA's driver, its persistence daemon, and the toolkit that hands cards to containers.

On Ubuntu the driver is the one that `ubuntu-drivers` offers for the card, with kernel modules that are built and signed
where the archive has them; on Debian it is the one of its packages that are not free. A driver that is there already
stays, unless another one is declared. A box without a card of NVIDIA is left as it is.

The box is restarted only with `nvidia_reboot: when_needed`; else the run, and `boxwright verify`, say that it must be.
"""
