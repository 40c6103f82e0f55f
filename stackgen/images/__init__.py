"""The images that stackgen builds itself, and the wheel inside the exporter's image."""
