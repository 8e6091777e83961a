"""Manifests: what starts a cluster and runs a configuration on it, as text. Needs no cluster."""
