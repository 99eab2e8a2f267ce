"""Untrusted input: the only ways in which bytes, names and values from outside are opened, parsed and printed."""
