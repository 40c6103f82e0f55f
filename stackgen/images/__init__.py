"""The images that stackgen builds, and the wheel inside the exporter's image."""
