"""Stores: where maildrops are (contract: ``restante.maildrop``; built by ``app.stores``)."""
