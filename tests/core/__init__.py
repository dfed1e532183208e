"""Tests of the functional core: by example, walked exhaustively, and at random."""
