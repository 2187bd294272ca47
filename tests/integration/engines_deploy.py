"""Models, engines and the watchdog alone, as deploys/stack.py has them, or their removal; for test_mac_engines.py."""

from pyinfra import host as target

from boxwright import preflight
from boxwright.preflight import Need
from roles.host import tasks as host
from roles.inference import tasks as inference
from roles.llamacpp import tasks as llamacpp
from roles.lmstudio import tasks as lmstudio
from roles.mlx import tasks as mlx
from roles.ollama import tasks as ollama

box = target.data.box
purge = target.data.get("purge", False) is True
if target.data.get("remove", False) is True:
    preflight.check(box, Need())
    inference.remove(box, purge)
    llamacpp.remove(box, purge)
    ollama.remove(box, purge)
    lmstudio.remove(box, purge)
    mlx.remove(box, purge)
else:
    engines = llamacpp.need(box) + ollama.need(box) + lmstudio.need(box) + mlx.need(box)
    machine = preflight.check(box, inference.need(box) + engines)
    host.apply(box, machine)
    inference.apply(box)
    llamacpp.prepare(box)
    ollama.prepare(box, machine)
    lmstudio.prepare(box)
    mlx.prepare(box)
    llamacpp.retire(box, machine)
    ollama.retire(box, machine)
    lmstudio.retire(box, machine)
    mlx.retire(box, machine)
    llamacpp.activate(box)
    ollama.activate(box)
    lmstudio.activate(box)
    mlx.activate(box)
    inference.watch(box, machine)
    inference.prune(box)
