"""A Mac that serves unattended: it does not sleep, starts again after a power cut, and wakes for the network.

Only settings for AC power are changed, with `pmset`; what was there before is noted on the Mac and comes back when a
variable is taken out, or boxwright is removed. What a Mac does not have, `pmset` accepts in silence: it is said and
left out.

FileVault, automatic updates and automatic login are read and never changed. FileVault keeps a Mac from serving until
somebody gives a password, so a run refuses a Mac that has it on unless that is accepted. `docs/mac.md` has the whole
story.
"""
