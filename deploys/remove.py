"""Takes away what deploys/stack.py added, in reverse: `pyinfra inventory.py deploys/remove.py`.

Data -- models, chats, certificates, images -- goes only with `--data purge=true`.
"""

from pyinfra import host as target

from boxwright import preflight
from boxwright.preflight import Need
from roles.api import tasks as api
from roles.cloudflared import tasks as cloudflared
from roles.docker import tasks as docker
from roles.fail2ban import tasks as fail2ban
from roles.firewall import tasks as firewall
from roles.gateway import tasks as gateway
from roles.host import tasks as host
from roles.inference import tasks as inference
from roles.llamacpp import tasks as llamacpp
from roles.lmstudio import tasks as lmstudio
from roles.mlx import tasks as mlx
from roles.nvidia import tasks as nvidia
from roles.ollama import tasks as ollama
from roles.openwebui import tasks as openwebui
from roles.postgresql import tasks as postgresql
from roles.power import tasks as power
from roles.qdrant import tasks as qdrant
from roles.redis import tasks as redis
from roles.sshd import tasks as sshd
from roles.tailscale import tasks as tailscale
from roles.vllm import tasks as vllm

box = target.data.box
purge = target.data.get("purge", False) is True
preflight.check(box, Need())

cloudflared.remove(box, purge)  # before the door that it leads to
tailscale.close(box)  # the ways in from the tailnet, before what guards them goes
firewall.remove(box, purge)  # while there is a program that takes its rules out of the kernel
sshd.remove(box, purge)
fail2ban.remove(box, purge)  # what it reads is the gateway's
firewall.uninstall(box, purge)  # fail2ban's bans end by the same program
gateway.remove(box, purge)  # the door closes before what is behind it goes
openwebui.remove(box, purge)
api.remove(box, purge)
qdrant.remove(box, purge)  # after who uses it
redis.remove(box, purge)
postgresql.remove(box, purge)
inference.remove(box, purge)  # the watchdog before the engines
llamacpp.remove(box, purge)
ollama.remove(box, purge)
lmstudio.remove(box, purge)
mlx.remove(box, purge)
vllm.remove(box, purge)
docker.remove(box, purge)
nvidia.remove(box, purge)  # when nothing computes any more
tailscale.remove(box, purge)  # late, as this run may come over the tailnet; the notes of what is ours go with the host
power.remove(box, purge)  # awake until everything else is gone
host.remove(box, purge)
