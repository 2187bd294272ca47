"""What Open WebUI is told, however it runs."""

from roles.registry import Box


def environment(box: Box) -> dict[str, str]:
    """Environment of Open WebUI 0.12; the user's own `openwebui_environment` comes last and wins."""
    settings, main = box.openwebui, box.inference.main
    return {
        "WEBUI_URL": box.gateway.url.rstrip("/"),
        # A browser may come by any name of the box; its websocket is refused from elsewhere.
        "CORS_ALLOW_ORIGIN": ";".join(dict.fromkeys((*box.gateway.origins, *box.cloudflared.origins(box)))),
        "WEBUI_SECRET_KEY": settings.secret_key.get_secret_value(),
        "WEBUI_SESSION_COOKIE_SECURE": "true",
        "WEBUI_AUTH_COOKIE_SECURE": "true",
        # The gateway alone may say for whom it asks.
        "FORWARDED_ALLOW_IPS": settings.believed(box),
        # What the environment says holds, whatever was changed in the page since the first start.
        "ENABLE_PERSISTENT_CONFIG": "false",
        "WEBUI_ADMIN_EMAIL": settings.admin_email,
        "WEBUI_ADMIN_NAME": settings.admin_name,
        "WEBUI_ADMIN_PASSWORD": settings.admin_password.get_secret_value(),
        "ENABLE_SIGNUP": "false",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "true",
        "OPENAI_API_BASE_URL": f"http://{settings.engine_host(box)}:{box.gateway.internal_port}/v1",
        "OPENAI_API_KEY": settings.engine_key.get_secret_value(),
        "DEFAULT_MODELS": box.engine(box.inference.engine).listed(main.name) if main else "",
        # Nothing is reported to, or fetched from, anybody.
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
        **settings.environment,
    }
