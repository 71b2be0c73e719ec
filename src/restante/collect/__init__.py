"""Collect mail from POP3 servers.

``collector`` runs a session, ``plan`` decides what to do with each message, and ``ledger`` records
what was done.
"""
