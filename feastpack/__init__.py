"""Feast plug-ins at the speed of the hardware; useful to any Feast user."""
