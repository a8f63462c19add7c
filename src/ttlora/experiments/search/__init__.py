"""`ttlora search`: from a space of settings to the trials that are worth their time."""
