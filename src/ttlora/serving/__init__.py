"""Engines that serve adapters: each module needs the engine that it is named after, and nobody else imports it."""
