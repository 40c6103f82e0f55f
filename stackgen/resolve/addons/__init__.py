"""Optional services next to the engines: gateway, monitoring, chat page. Each module adds services to a plan."""
