"""Hostile clients in a chaos run, and what they cost the honest ones."""
