"""Binding: which vehicle charges at which charger on which program, and how far its set-up has come."""
