"""Collecting mail: ``collector`` holds a session, ``plan`` decides, ``ledger`` remembers."""
