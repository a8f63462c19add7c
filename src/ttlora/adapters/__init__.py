"""Saved adapters: read them, whoever wrote them, inspect, merge, export, import and round them."""
