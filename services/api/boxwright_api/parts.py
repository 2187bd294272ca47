"""What a running service is made of; handlers find it as `request.app.state.parts`."""

from __future__ import annotations

from dataclasses import dataclass

from boxwright_api.contracts import Keys, Limiter, Store, Usage
from boxwright_api.settings import Settings


@dataclass(frozen=True)
class Parts:
    """The parts, started and stopped by the application's lifespan."""

    settings: Settings
    store: Store
    limiter: Limiter
    keys: Keys
    usage: Usage
