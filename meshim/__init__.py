"""meshim: a self-hosted instant-messaging server."""
