"""Bundles: everything that a stack needs on a machine without Internet access, in one folder.

A bundle is an OCI image layout (opencontainers/image-spec 1.1, image-layout.md) with more blobs in it: weights, wheels
and rendered files. `manifest.json` says what each blob is. Nothing in a bundle is secret.
"""
