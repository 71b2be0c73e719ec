"""Stores for maildrops (contract: ``restante.maildrop``; built by ``app.stores``)."""
