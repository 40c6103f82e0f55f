"""`stackgen.Client`: one question to any provider, sync and async."""
