"""Histories that every later version must read and decide alike. The files are never edited."""
