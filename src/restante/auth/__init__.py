"""Identity back ends: they check logins and look users up.

The contract is in ``restante.passdb``; ``app.backends`` has the table of back ends.
"""
