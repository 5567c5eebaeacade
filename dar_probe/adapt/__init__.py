"""Routers put into finished models."""
