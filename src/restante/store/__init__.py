"""Stores: where maildrops live (the contract is in ``restante.maildrop``)."""
