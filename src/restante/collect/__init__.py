"""Collecting mail from other servers."""
