"""Packages, built, installed and used: run by ``./dev test -m package`` and by .ci/run as root."""
