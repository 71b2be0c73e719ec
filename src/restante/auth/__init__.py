"""Identity back ends, which check logins and look users up.

``restante.passdb`` defines their contract, and ``app.backends`` contains the table of back ends.
"""
