"""The table of contents of a box: `pyinfra inventory.py deploys/stack.py`.

Read top to bottom, this is what a box is. Each line installs, configures and starts one role; all are idempotent.
"""

from pyinfra import host as target

from boxwright import preflight
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
# Refuses an unfit machine before anything is changed on it.
engines = llamacpp.need(box) + ollama.need(box) + lmstudio.need(box) + mlx.need(box) + vllm.need(box)
platform = postgresql.need(box) + redis.need(box) + qdrant.need(box) + api.need(box)
ways = gateway.need(box) + openwebui.need(box) + tailscale.need(box) + cloudflared.need(box)
machine = preflight.check(
    box, host.need(box) + power.need(box) + nvidia.need(box) + inference.need(box) + engines + platform + ways
)

host.apply(box, machine)  # packages, clock, updates and accounts that the rest builds on
power.apply(box)  # awake before anything that takes long
tailscale.apply(box, machine)  # before the gateway, which may have its certificates from it
nvidia.apply(box, machine)  # before the engines, and before Docker is asked for containers with a card
docker.apply(box, machine)  # before what runs in containers
inference.apply(box)  # the models' files, before the engines that read them
# The engines, in three steps: what is no longer declared goes when the rest is ready, and before that starts.
llamacpp.prepare(box)
ollama.prepare(box, machine)
lmstudio.prepare(box)
mlx.prepare(box)
vllm.prepare(box)
llamacpp.retire(box, machine)
ollama.retire(box, machine)
lmstudio.retire(box, machine)
mlx.retire(box, machine)
vllm.retire(box, machine)
llamacpp.activate(box)
ollama.activate(box)
lmstudio.activate(box)
mlx.activate(box)
vllm.activate(box)
postgresql.apply(box, machine)  # before the service that keeps its keys there
redis.apply(box, machine)
qdrant.apply(box, machine)
api.apply(box, machine)  # when the engines answer, whose models it waits for
openwebui.apply(box, machine)  # in a container it makes the network on which the gateway listens for it
gateway.apply(box, machine)  # the door opens when there is something behind it
fail2ban.apply(box)  # it reads the gateway's log
tailscale.serve(box)  # the way in from the tailnet opens when the gateway guards it
sshd.apply(box)  # when the accounts are there, and before a run that could not be reached again changes more
firewall.apply(box)  # closes the box when everything that it opens is there
inference.watch(box, machine)  # when the engines have started
inference.prune(box)  # nobody reads the files of other models any more
cloudflared.apply(box, machine)  # last: it waits for Cloudflare, and nothing else shall
