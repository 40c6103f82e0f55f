"""A stack on disk: stack.yaml and its schema, .env, client keys, and the folder that contains them."""
