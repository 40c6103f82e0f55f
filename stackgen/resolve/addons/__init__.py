"""Optional services next to the engines: gateway, monitoring, chat page. Each module extends a plan."""
