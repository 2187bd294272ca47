"""The one list of roles: a `Box` is the settings of one host, one attribute per role."""

from typing import cast

from boxwright.artifacts import MirrorSettings
from boxwright.engines import EngineSettings
from boxwright.settings import BoxBase
from roles.api.settings import ApiSettings
from roles.cloudflared.settings import CloudflaredSettings
from roles.docker.settings import DockerSettings
from roles.fail2ban.settings import Fail2banSettings
from roles.firewall.settings import FirewallSettings
from roles.gateway.settings import GatewaySettings
from roles.host.settings import HostSettings
from roles.inference.settings import InferenceSettings
from roles.llamacpp.settings import LlamacppSettings
from roles.lmstudio.settings import LmstudioSettings
from roles.mlx.settings import MlxSettings
from roles.nvidia.settings import NvidiaSettings
from roles.ollama.settings import OllamaSettings
from roles.openwebui.settings import OpenwebuiSettings
from roles.postgresql.settings import PostgresqlSettings
from roles.power.settings import PowerSettings
from roles.qdrant.settings import QdrantSettings
from roles.redis.settings import RedisSettings
from roles.sshd.settings import SshdSettings
from roles.tailscale.settings import TailscaleSettings
from roles.vllm.settings import VllmSettings


class Box(BoxBase):
    """Everything that was decided about one host, validated and frozen."""

    mirror: MirrorSettings
    host: HostSettings
    power: PowerSettings
    nvidia: NvidiaSettings
    docker: DockerSettings
    inference: InferenceSettings
    llamacpp: LlamacppSettings
    ollama: OllamaSettings
    lmstudio: LmstudioSettings
    mlx: MlxSettings
    vllm: VllmSettings
    postgresql: PostgresqlSettings
    redis: RedisSettings
    qdrant: QdrantSettings
    api: ApiSettings
    openwebui: OpenwebuiSettings
    gateway: GatewaySettings
    fail2ban: Fail2banSettings
    sshd: SshdSettings
    firewall: FirewallSettings
    tailscale: TailscaleSettings
    cloudflared: CloudflaredSettings

    def engine(self, name: str) -> EngineSettings:
        """The variables of the engine `name`."""
        return cast(EngineSettings, getattr(self, name))
