"""The gateway: the only door of the box, by Caddy or by nginx; on a Mac by Caddy.

HTTPS for the declared names; `/v1` goes to the engine after authentication, everything else to Open WebUI, which has a
login of its own. A new configuration is validated before it replaces the old one, and loaded without cutting streams.

`gateway_server: nginx` does the same with the distribution's own nginx, under a unit and a sandbox of ours. What it
cannot do is refused when settings are read (BW025): waiting for a turn, certificates by ACME or from Tailscale, limits
in a window, argon2id, looking at what an engine says of its health, and names of engines in place of addresses. A
certificate of the box's own authority is renewed by runs alone: at least one each year. Prefer tokens there: nginx asks
bcrypt again for each request with a password. To change the server of a box is a run; the other server's authority is
kept on the box, and clients need the root certificate of the new one.
"""
