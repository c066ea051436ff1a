"""Domains of Acme, Inc."""
