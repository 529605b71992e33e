"""Candidate generators behind one protocol."""
