"""What a stack has beside its engines: the gateway, monitoring, a chat page. Each module extends a plan."""
