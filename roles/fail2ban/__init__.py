"""Fail2Ban: an address that asks the gateway with wrong credentials again and again is shut out for a while.

Fail2Ban, from the distribution, reads the gateway's access log and has the packet filter refuse the address at the
door. It counts answers with status 401 that the gateway itself gave, and wrong passwords at Open WebUI's login page.
SSH and everything else of the box stay as they are for a banned address. `fail2ban-client status boxwright-gateway`
on the box lists who is banned, `fail2ban-client set boxwright-gateway unbanip ADDRESS` lets somebody in again.

Never banned are the box itself, the tailnet (100.64.0.0/10 and fd7a:115c:a1e0::/48), Open WebUI's network and
`fail2ban_never`. `boxwright verify` asks with wrong credentials on purpose: the machine from which it is run belongs
into `fail2ban_never`.
"""
